"""Publishes what a rank measures: its own file, and the exporter of its node."""

from __future__ import annotations

import contextlib
import sys
from functools import partial

from prometheus_client import CollectorRegistry

from pipeline.config.schema import MetricsConfig
from pipeline.metrics.addresses import LOOPBACK, Node, choose_address, exposure, is_loopback
from pipeline.metrics.exporter import start_exporter
from pipeline.metrics.publisher import Publisher
from pipeline.metrics.rank import RankMetrics
from pipeline.ranks.world import World
from pipeline.run.console import Console
from pipeline.run.directory import RunDirectory


def publish(
    config: MetricsConfig, run: RunDirectory, world: World, resources: contextlib.ExitStack
) -> tuple[CollectorRegistry, RankMetrics]:
    """This rank's metrics and their registry, published until `resources` are closed.

    All ranks call it together, whatever their options: these may differ from host to host.
    """
    environment, registry = world.environment, CollectorRegistry()
    metrics = RankMetrics(world.rank, environment.local_rank, registry)
    address = exporter_address(config, world)
    if not config.enabled:
        return registry, metrics
    if config.exporter:
        if world.is_main and not is_loopback(address):
            Console(sys.stdout).line(exposure(config, address))
        if environment.local_rank == 0:
            start_exporter(run, config, address)
    publisher = Publisher(
        run.metrics,
        registry,
        rank=world.rank,
        local_rank=environment.local_rank,
        interval_seconds=config.publish_seconds,
    )
    resources.callback(publisher.close)
    resources.push(partial(_note_failure, metrics))  # before the last values are published
    return registry, metrics


def exporter_address(config: MetricsConfig, world: World) -> str:
    """`choose_address` for this rank's node; loopback where the node gets no exporter."""
    nodes, address = world.all_gather_object(Node.this_one(world.environment.rendezvous)), LOOPBACK
    with world.fail_together():
        if config.enabled and config.exporter:
            address = choose_address(config.exporter_address, nodes, world.rank)
    return address


def _note_failure(
    metrics: RankMetrics, _: object, error: BaseException | None, *__: object
) -> None:
    if isinstance(error, Exception):
        metrics.record_outcome("failed")
