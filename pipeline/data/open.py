"""How training gets its batches: through a loader from files, or from what is resident."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from data_prep.shard_set.manifest import Split
from pipeline.config.schema import Config
from pipeline.data.augment.crop_policy import training_crop_policy
from pipeline.data.batches import resident
from pipeline.data.batches.batch import Batches
from pipeline.data.batches.loader import Loader, Request, requests_of_all, training_requests
from pipeline.data.cache.remote_shards import RemoteShards
from pipeline.data.cache.shard_set import ShardSet
from pipeline.data.order.partition import BatchPlan, ShardShuffle
from pipeline.data.order.shard_needs import (
    check_cache_bytes,
    check_resident_cache_bytes,
    run_position,
    training_needs,
)
from pipeline.data.readers.open import open_training_reader, open_whole_images
from pipeline.data.readers.staging import StagedReader, remote_files
from pipeline.ranks.mesh import Mesh
from pipeline.ranks.world import World

OpenBatches = Callable[[int, int], Batches]
"""Gives this rank's batches from one step up to another."""


def make_plan(config: Config, split: Split, num_replicas: int) -> BatchPlan:
    """The batch arithmetic of training on `split`; raises `ValueError` if it does not come out."""
    width = config.data.shuffle_shards
    return BatchPlan(
        num_samples=split.num_samples,
        global_batch_size=config.global_batch_size,
        num_replicas=num_replicas,
        accumulation_steps=config.accumulation_steps,
        drop_last=config.data.drop_last,
        shuffle=None if width is None else ShardShuffle(split.shard_lengths, width),
    )


def check_cache(config: Config, shards: ShardSet, plan: BatchPlan, ranks_of_host: int) -> None:
    """Raise `ValueError` if the cache of remote shards is too small for the order of samples."""
    data, splits = config.data, shards.manifest
    if shards.cache is None or data.cache_bytes is None:
        return
    train, val = splits.split("train"), splits.split("val")
    batches_ahead = data.prefetch_batches + 2  # in the queue, in use and being read
    val_ahead = batches_ahead * config.evaluation.block_size * plan.num_replicas
    if data.is_resident:
        check_resident_cache_bytes(
            data.cache_bytes,
            train,
            val,
            ranks_of_host=ranks_of_host,
            read_at_once=resident.CHUNK_SAMPLES,
            val_ahead=val_ahead,
        )
        return
    steps_ahead = -(-batches_ahead // plan.accumulation_steps) + 1
    check_cache_bytes(
        data.cache_bytes,
        plan,
        train,
        val,
        train_ahead=steps_ahead * plan.global_batch_size,
        val_ahead=val_ahead,
    )


def open_batches(
    config: Config,
    shards: ShardSet,
    plan: BatchPlan,
    world: World,
    mesh: Mesh,
    resources: contextlib.ExitStack,
) -> OpenBatches:
    """Open the training split as `data.reader` says; the ranks call it together.

    Raises what the readers raise, and `ValueError` if a resident split has no room.
    """
    if config.data.is_resident:
        return _resident_batches(config, shards, plan, world, mesh)
    with world.fail_together():
        files = remote_files(shards, "train")
        reader = open_training_reader(config, shards, files)
        resources.callback(reader.close)

    def open_loader(start_step: int, end_step: int) -> Batches:
        requests = training_requests(plan, config.seed, mesh.replica, start_step, end_step)
        if files is not None:
            requests = _staged(requests, files, plan, config.seed, start_step, end_step)
        return Loader(
            reader,
            requests,
            batch_size=plan.local_batch_size,
            depth=config.data.prefetch_batches,
            pin_memory=world.device.type == "cuda",
        )

    return open_loader


def _staged(
    requests: Iterator[Request],
    files: RemoteShards,
    plan: BatchPlan,
    seed: int,
    start_step: int,
    end_step: int,
) -> Iterator[Request]:
    """The requests, while their shards are staged ahead and given up behind them."""
    lengths = files.shard_lengths
    files.expect(training_needs(plan, lengths, seed, start_step, end_step))
    for step in range(start_step, end_step):
        files.passed(run_position(plan, step))  # the loader has read all before it asks for more
        for _ in range(plan.accumulation_steps):
            yield next(requests)


def _resident_batches(
    config: Config, shards: ShardSet, plan: BatchPlan, world: World, mesh: Mesh
) -> OpenBatches:
    with world.fail_together():
        files = remote_files(shards, "train")
        reader = open_whole_images(config, shards, files)
        crop_policy = training_crop_policy(config.augment, shards.manifest.image_size, config.seed)
    if files is not None:
        reader = StagedReader(reader, files, resident.stretch(reader.num_samples, world))
    with contextlib.closing(reader):
        split = resident.load(reader, world)
    replicas = world.all_gather_object(mesh.replica)

    def open_resident(start_step: int, end_step: int) -> Batches:
        requests = requests_of_all(plan, config.seed, start_step, end_step)
        return resident.ResidentBatches(split, crop_policy, requests, world, replicas)

    return open_resident
