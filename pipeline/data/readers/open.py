"""Opens the reader that a run asks for."""

from __future__ import annotations

from pathlib import Path
from typing import assert_never

from pipeline.config.schema import Config
from pipeline.data.augment.crop_policy import (
    CropPolicy,
    evaluation_crop_policy,
    training_crop_policy,
)
from pipeline.data.cache.shard_set import ShardSet
from pipeline.data.readers.beton import BetonSampleIndex
from pipeline.data.readers.jpeg import JpegReader
from pipeline.data.readers.reading import Quarantine, Reader
from pipeline.data.readers.sample_index import SampleIndex
from pipeline.data.readers.stored_pixels import PixelReader
from pipeline.data.readers.tar import LocalFiles, ShardFiles, TarSampleIndex


def open_training_reader(
    config: Config, shards: ShardSet, files: ShardFiles | None = None
) -> Reader:
    """The reader of `train`, with random crops; `files` are its shards, if they are not local.

    Raises `ShardSetError` if the shard set is not whole, and `ValueError` if its images do not suit
    the recipe.
    """
    crop_policy = training_crop_policy(config.augment, shards.manifest.image_size, config.seed)
    return _open(config, shards, "train", crop_policy, _max_corrupt(config, shards), files)


def open_whole_images(config: Config, shards: ShardSet, files: ShardFiles | None = None) -> Reader:
    """The reader of `train` without any crops, for images of one size. Raises the same."""
    crop_policy = evaluation_crop_policy(config.augment, shards.manifest.image_size)
    return _open(config, shards, "train", crop_policy, _max_corrupt(config, shards), files)


def open_evaluation_reader(
    config: Config, shards: ShardSet, split: str, files: ShardFiles | None = None
) -> Reader:
    """The reader of any split for evaluation: every sample of it counts. Raises the same."""
    crop_policy = evaluation_crop_policy(config.augment, shards.manifest.image_size)
    return _open(config, shards, split, crop_policy, None, files)


def _max_corrupt(config: Config, shards: ShardSet) -> int:
    return int(config.data.max_corrupt_ratio * shards.manifest.split("train").num_samples)


def _open(
    config: Config,
    shards: ShardSet,
    split: str,
    crop_policy: CropPolicy,
    max_corrupt: int | None,
    files: ShardFiles | None,
) -> Reader:
    index = _open_index(config, shards, split, files)
    quarantine = Quarantine(index, max_corrupt)
    num_threads = config.data.decode_threads
    match index.encoding:
        case "rgb":
            return PixelReader(index, crop_policy, quarantine, num_threads=num_threads)
        case "jpeg":
            return JpegReader(index, crop_policy, quarantine, num_threads=num_threads)
        case unknown:
            assert_never(unknown)


def _open_index(
    config: Config, shards: ShardSet, split: str, files: ShardFiles | None
) -> SampleIndex:
    manifest = shards.manifest
    match config.data.reader:
        case "beton":
            return BetonSampleIndex(Path(config.data.beton), shards.folder, manifest, split)
        case "tar" | "remote" | "resident":
            files = files or LocalFiles(shards.folder, manifest.split(split))
            try:
                return TarSampleIndex(shards.folder, manifest, split, files)
            except BaseException:
                files.close()
                raise
        case unknown:
            assert_never(unknown)
