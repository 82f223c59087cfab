"""How training gets its batches: through a loader from files, or from what is resident."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from data_prep.manifest import Manifest
from pipeline.config import Config
from pipeline.data import resident
from pipeline.data.batch import Batches
from pipeline.data.framing import training_framing
from pipeline.data.loader import Loader, requests_of_all, training_requests
from pipeline.data.partition import BatchPlan
from pipeline.data.readers import open_training_reader, open_whole_images
from pipeline.distributed import World
from pipeline.grid import Grid

OpenBatches = Callable[[int, int], Batches]
"""Gives this rank's batches from one step up to another."""


def open_batches(
    config: Config,
    manifest: Manifest,
    plan: BatchPlan,
    world: World,
    grid: Grid,
    resources: contextlib.ExitStack,
) -> OpenBatches:
    """Open the training split as `data.reader` says; the ranks call it together.

    Raises what the readers raise, and `ValueError` if a resident split has no room.
    """
    if config.data.reader == "resident":
        return _resident_batches(config, manifest, plan, world, grid)
    with world.together():
        reader = open_training_reader(config, Path(config.data.shards), manifest)
        resources.callback(reader.close)

    def open_loader(start_step: int, end_step: int) -> Batches:
        return Loader(
            reader,
            training_requests(plan, config.seed, grid.replica, start_step, end_step),
            batch_size=plan.local_batch_size,
            depth=config.data.prefetch_batches,
            pin_memory=world.device.type == "cuda",
        )

    return open_loader


def _resident_batches(
    config: Config, manifest: Manifest, plan: BatchPlan, world: World, grid: Grid
) -> OpenBatches:
    with world.together():
        reader = open_whole_images(config, Path(config.data.shards), manifest)
        framing = training_framing(config.augment, manifest.image_size, config.seed)
    with contextlib.closing(reader):
        split = resident.load(reader, world)
    replicas = world.gather(grid.replica)

    def open_resident(start_step: int, end_step: int) -> Batches:
        requests = requests_of_all(plan, config.seed, start_step, end_step)
        return resident.ResidentBatches(split, framing, requests, world, replicas)

    return open_resident
