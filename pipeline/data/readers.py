"""Opens the reader that a run asks for."""

from __future__ import annotations

from pathlib import Path

from data_prep.manifest import Manifest
from pipeline.config import Config
from pipeline.data.framing import Framing, evaluation_framing, training_framing
from pipeline.data.jpeg import JpegReader
from pipeline.data.places import Places
from pipeline.data.reading import Quarantine, Reader
from pipeline.data.stored_pixels import PixelReader
from pipeline.data.tar import local_places


def open_training_reader(config: Config, shards: Path, manifest: Manifest) -> Reader:
    """The reader of `train`, with random frames.

    Raises `ShardSetError` if the shard set is not whole, and `ValueError` if its images do not suit
    the recipe.
    """
    framing = training_framing(config.augment, manifest.image_size, config.seed)
    return _open(config, shards, manifest, "train", framing, _max_corrupt(config, manifest))


def open_evaluation_reader(config: Config, shards: Path, manifest: Manifest, split: str) -> Reader:
    """The reader of any split for evaluation: every sample of it counts. Raises the same."""
    framing = evaluation_framing(config.augment, manifest.image_size)
    return _open(config, shards, manifest, split, framing, max_corrupt=0)


def open_whole_images(config: Config, shards: Path, manifest: Manifest) -> Reader:
    """The reader of `train` without any frames, for images of one size. Raises the same."""
    framing = evaluation_framing(config.augment, manifest.image_size)
    return _open(config, shards, manifest, "train", framing, _max_corrupt(config, manifest))


def _max_corrupt(config: Config, manifest: Manifest) -> int:
    return int(config.data.max_corrupt_ratio * manifest.split("train").num_samples)


def _open(
    config: Config, shards: Path, manifest: Manifest, split: str, framing: Framing, max_corrupt: int
) -> Reader:
    places: Places = local_places(shards, manifest, split)
    quarantine = Quarantine(places, max_corrupt)
    kind = PixelReader if places.encoding == "rgb" else JpegReader
    return kind(places, framing, quarantine, num_threads=config.data.decode_threads)
