"""Publishes what a rank measures: its own file, and the exporter of its node."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from pipeline.config.schema import LOOPBACK, MetricsConfig
from pipeline.metrics.addresses import Node, choose_address, exposure, is_loopback
from pipeline.metrics.rank import RankMetrics
from pipeline.ranks.world import World
from pipeline.run.console import Console
from pipeline.run.directory import RunDirectory

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


@contextlib.contextmanager
def publishing(
    config: MetricsConfig, run: RunDirectory, world: World
) -> Iterator[tuple[CollectorRegistry | None, RankMetrics]]:
    """This rank's metrics and their registry, published for the length of the block.

    All ranks call it together, whatever their options: these may differ from host to host. Without
    metrics there is no registry, and prometheus_client is not needed.
    """
    environment, registry = world.environment, _registry() if config.enabled else None
    metrics = RankMetrics(world.rank, environment.local_rank, registry)
    address = exporter_address(config, world)
    if config.enabled and config.exporter and world.generation == 0:  # it outlives ranks
        if world.is_main and not is_loopback(address):
            Console(sys.stdout).line(exposure(config, address))
        if environment.local_rank == 0:
            from pipeline.metrics.exporter import start_exporter

            start_exporter(run, config, address)
    with contextlib.ExitStack() as resources:
        if registry is not None:
            from pipeline.metrics.gpu import GpuCollector
            from pipeline.metrics.publisher import Publisher

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


def _registry() -> CollectorRegistry:
    from prometheus_client import CollectorRegistry

    return CollectorRegistry()


def exporter_address(config: MetricsConfig, world: World) -> str:
    """`choose_address` for this rank's node; loopback where the node gets no exporter."""
    nodes, address = world.all_gather_object(Node.this_one(world.environment.rendezvous)), LOOPBACK
    with world.fail_together():
        if config.enabled and config.exporter:
            address = choose_address(config.exporter_address, nodes, world.rank)
    return address
