"""Opens the reader that a run asks for."""

from __future__ import annotations

from pathlib import Path
from typing import assert_never

from pipeline.config.schema import Config
from pipeline.data.augment.framing import Framing, evaluation_framing, training_framing
from pipeline.data.cache.shard_set import ShardSet
from pipeline.data.readers.beton import BetonPlaces
from pipeline.data.readers.jpeg import JpegReader
from pipeline.data.readers.places import Places
from pipeline.data.readers.reading import Quarantine, Reader
from pipeline.data.readers.stored_pixels import PixelReader
from pipeline.data.readers.tar import LocalFiles, ShardFiles, TarPlaces


def open_training_reader(
    config: Config, shards: ShardSet, files: ShardFiles | None = None
) -> Reader:
    """The reader of `train`, with random frames; `files` are its shards, if they are not local.

    Raises `ShardSetError` if the shard set is not whole, and `ValueError` if its images do not suit
    the recipe.
    """
    framing = training_framing(config.augment, shards.manifest.image_size, config.seed)
    return _open(config, shards, "train", framing, _max_corrupt(config, shards), files)


def open_whole_images(config: Config, shards: ShardSet, files: ShardFiles | None = None) -> Reader:
    """The reader of `train` without any frames, for images of one size. Raises the same."""
    framing = evaluation_framing(config.augment, shards.manifest.image_size)
    return _open(config, shards, "train", framing, _max_corrupt(config, shards), files)


def open_evaluation_reader(
    config: Config, shards: ShardSet, split: str, files: ShardFiles | None = None
) -> Reader:
    """The reader of any split for evaluation: every sample of it counts. Raises the same."""
    framing = evaluation_framing(config.augment, shards.manifest.image_size)
    return _open(config, shards, split, framing, 0, files)


def _max_corrupt(config: Config, shards: ShardSet) -> int:
    return int(config.data.max_corrupt_ratio * shards.manifest.split("train").num_samples)


def _open(
    config: Config,
    shards: ShardSet,
    split: str,
    framing: Framing,
    max_corrupt: int,
    files: ShardFiles | None,
) -> Reader:
    places = _places(config, shards, split, files)
    quarantine = Quarantine(places, max_corrupt)
    num_threads = config.data.decode_threads
    match places.encoding:
        case "rgb":
            return PixelReader(places, framing, quarantine, num_threads=num_threads)
        case "jpeg":
            return JpegReader(places, framing, quarantine, num_threads=num_threads)
        case unknown:
            assert_never(unknown)


def _places(config: Config, shards: ShardSet, split: str, files: ShardFiles | None) -> Places:
    manifest = shards.manifest
    match config.data.reader:
        case "beton":
            return BetonPlaces(Path(config.data.beton), shards.folder, manifest, split)
        case "tar" | "remote" | "resident":
            files = files or LocalFiles(shards.folder, manifest.split(split))
            try:
                return TarPlaces(shards.folder, manifest, split, files)
            except BaseException:
                files.close()
                raise
        case unknown:
            assert_never(unknown)
