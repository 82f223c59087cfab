"""Publishes what a rank measures: its own file, and the exporter of its node."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import torch
from prometheus_client import CollectorRegistry

from pipeline.config.schema import MetricsConfig
from pipeline.metrics.addresses import LOOPBACK, Node, choose_address, exposure, is_loopback
from pipeline.metrics.exporter import start_exporter
from pipeline.metrics.gpu import GpuCollector
from pipeline.metrics.publisher import Publisher
from pipeline.metrics.rank import RankMetrics
from pipeline.ranks.world import World
from pipeline.run.console import Console
from pipeline.run.directory import RunDirectory


@contextlib.contextmanager
def publishing(
    config: MetricsConfig, run: RunDirectory, world: World
) -> Iterator[tuple[CollectorRegistry, RankMetrics]]:
    """This rank's metrics and their registry, published for the length of the block.

    All ranks call it together, whatever their options: these may differ from host to host.
    """
    environment, registry = world.environment, CollectorRegistry()
    metrics = RankMetrics(world.rank, environment.local_rank, registry)
    address = exporter_address(config, world)
    if config.enabled and config.exporter:
        if world.is_main and not is_loopback(address):
            Console(sys.stdout).line(exposure(config, address))
        if environment.local_rank == 0:
            start_exporter(run, config, address)
    with contextlib.ExitStack() as resources:
        if config.enabled:
            if world.device.type == "cuda":
                uuid = f"GPU-{torch.cuda.get_device_properties(world.device).uuid}"
                local_rank = environment.local_rank
                registry.register(GpuCollector(uuid, rank=world.rank, local_rank=local_rank))
            publisher = Publisher(
                run.metrics,
                registry,
                rank=world.rank,
                local_rank=environment.local_rank,
                interval_seconds=config.publish_seconds,
                refresh=metrics.show_phase,
            )
            resources.callback(publisher.close)
        try:
            yield registry, metrics
        except Exception:
            metrics.record_outcome("failed")  # before the last values are published
            raise


def exporter_address(config: MetricsConfig, world: World) -> str:
    """`choose_address` for this rank's node; loopback where the node gets no exporter."""
    nodes, address = world.all_gather_object(Node.this_one(world.environment.rendezvous)), LOOPBACK
    with world.fail_together():
        if config.enabled and config.exporter:
            address = choose_address(config.exporter_address, nodes, world.rank)
    return address
