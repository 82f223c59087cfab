"""The one door into data: whoever trains, evaluates or benchmarks opens a shard set here.

    data = open_data(config, world.device, resources)
    plan, normalizer = data.plan(mesh.num_replicas), data.normalizer()
    augmenter = data.augmenter(normalizer)
    val = data.open_evaluation("val", config.evaluation.views, normalizer)
    with data.open_batches(plan, world, mesh, besides)(start_step, end_step) as batches: ...

The rooms above need nothing else of data: the types that they name are here too.
Longer than 250 lines: all ways of opening a shard set are here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from data_prep.shard_set.index import read_mean_image
from data_prep.shard_set.manifest import Manifest, manifest_sha256
from pipeline.config.schema import Config
from pipeline.data.augment.crop_policy import (
    CropPolicy,
    ImageSize,
    evaluation_crop_policy,
    input_size,
    training_crop_policy,
)
from pipeline.data.augment.crops import take_crops
from pipeline.data.augment.normalize import Normalizer, build_normalizer, constancy
from pipeline.data.augment.preprocess import Augmenter, Viewer
from pipeline.data.batches import resident
from pipeline.data.batches.loader import (
    Batch,
    Batches,
    Loader,
    block_requests,
    training_requests,
)
from pipeline.data.batches.room import ResidentImages, check_room, exchange_bytes, free_bytes
from pipeline.data.batches.split import OpenedSplit
from pipeline.data.cache.remote_shards import RemoteShards
from pipeline.data.cache.shard_cache import ShardSet
from pipeline.data.order.partition import (
    BatchPlan,
    ShardShuffle,
    every_steps,
    num_steps,
    sample_blocks,
    steps_of_epoch,
)
from pipeline.data.order.shard_needs import (
    check_cache_bytes,
    check_resident_cache_bytes,
    stretch_needs,
    training_needs,
)
from pipeline.data.readers.open import open_reader
from pipeline.data.readers.sample_index import Damage, ReadCost
from pipeline.ranks.mesh import Mesh
from pipeline.ranks.world import World

__all__ = [
    "Augmenter", "Batch", "BatchPlan", "Batches", "Damage", "Data", "EvaluatedSplit", "ImageSize",
    "Needs", "Normalizer", "OpenBatches", "ReadCost", "constancy", "every_steps",
    "input_size", "num_steps", "open_data", "steps_of_epoch", "take_crops",
]  # fmt: skip

OpenBatches = Callable[[int, int], AbstractContextManager[Batches]]
"""From two steps: the batches of this rank from the first up to the second."""

Needs = Callable[[World, Mesh], Mapping[str, int]]
"""What else will take memory of a rank's device, in bytes, and what for."""


@dataclass(frozen=True, slots=True)
class Data:
    """A shard set, read as `config` says; `resources` close what its methods open."""

    config: Config
    shards: ShardSet
    manifest_sha256: str
    device: torch.device
    resources: contextlib.ExitStack

    @property
    def manifest(self) -> Manifest:
        return self.shards.manifest

    def input_size(self) -> ImageSize:
        """What the network gets; raises `ValueError` if the images do not suit the recipe."""
        return input_size(self.config.augment, self.manifest.image_size)

    def normalizer(self) -> Normalizer:
        """Raises `ShardSetError` if a mean image is wanted and is not there."""
        config, statistics = self.config.augment, self.manifest.statistics
        mean_image = None
        if config.subtracts_mean_image:
            mean_image = read_mean_image(self.shards.folder, statistics)
        return build_normalizer(config, statistics, mean_image, self.device)

    def augmenter(self, normalizer: Normalizer, dtype: torch.dtype = torch.float32) -> Augmenter:
        """`dtype` is what the network's first layer computes in."""
        config, statistics = self.config, self.manifest.statistics
        return Augmenter(config.augment, config.seed, statistics, normalizer, dtype)

    def plan(self, num_replicas: int) -> BatchPlan:
        """The batch arithmetic of training; raises `ValueError` if a size cannot be divided."""
        config, train = self.config, self.manifest.split("train")
        width = config.data.shuffle_shards
        return BatchPlan(
            num_samples=train.num_samples,
            global_batch_size=config.global_batch_size,
            num_replicas=num_replicas,
            accumulation_steps=config.accumulation_steps,
            drop_last=config.data.drop_last,
            shuffle=None if width is None else ShardShuffle(train.shard_lengths, width),
        )

    def open_evaluation(self, split: str, views: int, normalizer: Normalizer) -> EvaluatedSplit:
        """Open a split none of whose images may be damaged.

        Raises `ShardSetError` if the shard set is not whole, and `ValueError` if its images are too
        small for `views`.
        """
        config = self.config
        crop_policy = evaluation_crop_policy(config.augment, self.manifest.image_size)
        opened = self._open_whole(split)
        viewer = Viewer(config.augment, views, crop_policy.output_size, normalizer)
        return EvaluatedSplit(data=self, name=split, views=views, viewer=viewer, opened=opened)

    def _open_whole(self, split: str) -> OpenedSplit:
        """A split to be evaluated."""
        crop_policy = evaluation_crop_policy(self.config.augment, self.manifest.image_size)
        return self._open(split, crop_policy, max_corrupt=None)

    def open_batches(
        self, plan: BatchPlan, world: World, mesh: Mesh, besides: Needs
    ) -> OpenBatches:
        """Open the training split as `data.reader` says; the ranks call it together.

        `besides` is asked where splits are resident. Raises `ShardSetError` if the shard set is not
        whole, and `ValueError` if its images do not suit the recipe, or if a cache or the memory
        for resident splits is too small.
        """
        with world.fail_together():
            self._check_cache(plan, world.environment.local_world_size)
            if not self.config.data.is_resident:
                return self.open_files(plan, mesh.replica)
            augment, size, seed = self.config.augment, self.manifest.image_size, self.config.seed
            crop_policy = training_crop_policy(augment, size, seed)
            opened = self._filling(world)._open_train(evaluation_crop_policy(augment, size))
            shape, crop_size = opened.reader.image_shape, crop_policy.output_size
            self._check_room(shape, crop_size, plan, world, mesh, besides(world, mesh))
        stretch = resident.stretch(opened.reader.num_samples, world)
        with opened.filling([stretch], stretch, world) as (loader, show):
            sizes = opened.reader.num_samples, opened.reader.image_shape
            split = resident.load(loader, *sizes, world, show)
        replicas = world.all_gather_object(mesh.replica)

        @contextlib.contextmanager
        def open_resident(start_step: int, end_step: int) -> Iterator[Batches]:
            requests = training_requests(plan, seed, start_step, end_step)
            batches = resident.ResidentBatches(split, crop_policy, requests, world, replicas)
            yield batches
            batches.finish()

        return open_resident

    def open_files(self, plan: BatchPlan, replica: int) -> OpenBatches:
        """Open the training split for one replica, to be read from files. Raises the same."""
        augment, size, seed = self.config.augment, self.manifest.image_size, self.config.seed
        opened = self._open_train(training_crop_policy(augment, size, seed))

        def open_loader(start_step: int, end_step: int) -> contextlib.closing[Loader]:
            steps = seed, start_step, end_step
            requests = (of_all[replica] for of_all in training_requests(plan, *steps))
            needs = training_needs(plan, opened.split.shard_lengths, *steps)
            return opened.loader(requests, needs, plan.local_batch_size, pad=False)

        return open_loader

    def _open_train(self, crop_policy: CropPolicy) -> OpenedSplit:
        num_samples = self.manifest.split("train").num_samples
        max_corrupt = int(self.config.data.max_corrupt_ratio * num_samples)
        return self._open("train", crop_policy, max_corrupt=max_corrupt)

    def _filling(self, world: World) -> Data:
        """The same, read by all cores of the host: nothing is computed until memory is filled."""
        config = self.config
        cores = len(os.sched_getaffinity(0)) // world.environment.local_world_size
        threads = max(config.data.decode_threads, cores)
        data = dataclasses.replace(config.data, decode_threads=threads)
        return dataclasses.replace(self, config=dataclasses.replace(config, data=data))

    def _open(self, name: str, crop_policy: CropPolicy, *, max_corrupt: int | None) -> OpenedSplit:
        config, shards, split = self.config.data, self.shards, self.manifest.split(name)
        cache = shards.cache
        files = None if cache is None else RemoteShards(cache, shards.folder, split)
        reader = open_reader(config, shards, name, crop_policy, max_corrupt, files)
        self.resources.callback(reader.close)
        return OpenedSplit(
            split=split,
            reader=reader,
            files=files,
            prefetch_batches=config.prefetch_batches,
            pin_memory=self.device.type == "cuda",
        )

    def _check_room(
        self,
        image_shape: tuple[int, ...],
        crop_size: ImageSize,
        plan: BatchPlan,
        world: World,
        mesh: Mesh,
        needs: Mapping[str, int],
    ) -> None:
        """Raise `ValueError` if train and val do not fit beside what training needs."""
        block_size = self.config.evaluation.block_size
        train = ResidentImages(split="train", num_samples=plan.num_samples, image_shape=image_shape)
        val = ResidentImages(
            split="val",
            num_samples=self.manifest.split("val").num_samples,
            image_shape=image_shape,
            block_size=block_size,
            num_holders=mesh.ranks_per_replica,
        )
        needs = {
            **needs,
            # As pixels that planes become, and as the part of them that is a view.
            "images that are evaluated": 2 * block_size * train.image_bytes,
            "crops on their way between ranks": exchange_bytes(plan, crop_size, world),
        }
        check_room([train, val], needs, world, free_bytes(world))

    def _check_cache(self, plan: BatchPlan, ranks_of_host: int) -> None:
        """Raise `ValueError` if the cache is too small for the order of samples."""
        data, splits = self.config.data, (self.manifest.split("train"), self.manifest.split("val"))
        if self.shards.cache is None or data.cache_bytes is None:
            return
        batches_ahead = data.prefetch_batches + 2  # in the queue, in use and being read
        val_ahead = batches_ahead * self.config.evaluation.block_size * plan.num_replicas
        if data.is_resident:
            at_once = ranks_of_host, resident.CHUNK_SAMPLES
            check_resident_cache_bytes(data.cache_bytes, *splits, *at_once, val_ahead)
        else:
            steps_ahead = -(-batches_ahead // plan.accumulation_steps) + 1
            train_ahead = steps_ahead * plan.global_batch_size
            check_cache_bytes(data.cache_bytes, plan, *splits, train_ahead, val_ahead)


def open_data(config: Config, device: torch.device, resources: contextlib.ExitStack) -> Data:
    """Open the shard set that `data.shards` names, a folder or a URL.

    What its methods open is closed by `resources`. Raises `ShardSetError` if that is no shard set,
    and for a URL `FetchError` if the manifest cannot be fetched.
    """
    shards = ShardSet.opened(config.data)
    return Data(config, shards, manifest_sha256(shards.folder), device, resources)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatedSplit:
    """A split, every sample of it once, and the views of each image."""

    data: Data
    name: str
    views: int
    viewer: Viewer
    opened: OpenedSplit
    held: Sequence[Batch] | None = None
    """The blocks of this rank's replica, if they are resident."""

    @property
    def num_samples(self) -> int:
        return self.opened.reader.num_samples

    def resident(self, world: World, mesh: Mesh) -> EvaluatedSplit:
        """The same in the memory of the devices; the ranks call it together, before training.

        Raises `ShardSetError` if an image is damaged.
        """
        blocks, needed = self._blocks(mesh), range(self.num_samples)
        with world.fail_together():
            self.opened.reader.close()
            opened = self.data._filling(world)._open_whole(self.name)
        with opened.filling(blocks, needed, world) as (loader, show):
            sizes = self.data.config.evaluation.block_size, opened.reader.image_shape
            held = resident.load_blocks(loader, blocks, *sizes, world, show)
        return dataclasses.replace(self, held=held)

    def open_blocks(self, mesh: Mesh) -> AbstractContextManager[Iterator[Batch]]:
        """The blocks that this rank's replica evaluates, as batches of one size."""
        if self.held is not None:
            return contextlib.nullcontext(iter(self.held))
        needs = stretch_needs(self.opened.split.shard_lengths, range(self.num_samples))
        requests = block_requests(self._blocks(mesh))
        return self.opened.loader(requests, needs, self.data.config.evaluation.block_size, pad=True)

    def _blocks(self, mesh: Mesh) -> list[range]:
        block_size = self.data.config.evaluation.block_size
        return sample_blocks(range(self.num_samples), block_size, mesh.num_replicas, mesh.replica)
