"""Opens the reader that a run asks for."""

from __future__ import annotations

from pathlib import Path
from typing import assert_never

from data_prep.shard_set.codec import codec_of
from pipeline.config.data import DataConfig
from pipeline.data.augment.crop_policy import CropPolicy
from pipeline.data.cache.remote_shards import RemoteShards
from pipeline.data.cache.shard_set import ShardSet
from pipeline.data.readers.beton import open_beton_index
from pipeline.data.readers.file_reader import FileReader
from pipeline.data.readers.reading import Reader
from pipeline.data.readers.sample_index import SampleIndex
from pipeline.data.readers.stored_pixels import PixelReader
from pipeline.data.readers.tar import open_tars


def open_reader(
    config: DataConfig,
    shards: ShardSet,
    split: str,
    crop_policy: CropPolicy,
    max_corrupt: int | None,
    files: RemoteShards | None,
) -> Reader:
    """The reader of a split; `files` are its shards, if they are staged from a URL.

    Raises `ShardSetError` if the shard set is not whole.
    """
    index = _open_index(config, shards, split, files)
    kind = PixelReader if codec_of(index.encoding).has_fixed_size else FileReader
    return kind(index, crop_policy, max_corrupt=max_corrupt, num_threads=config.decode_threads)


def _open_index(
    config: DataConfig, shards: ShardSet, split: str, files: RemoteShards | None
) -> SampleIndex:
    match config.reader:
        case "beton":
            return open_beton_index(Path(config.beton), shards.folder, shards.manifest, split)
        case "tar" | "remote" | "resident":
            return open_tars(shards, split, files)
        case unknown:
            assert_never(unknown)
