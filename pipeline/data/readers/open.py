"""Opens the reader that a run asks for."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import assert_never

import numpy as np

from data_prep.shard_set.beton_format import open_beton
from data_prep.shard_set.codec import codec_of
from data_prep.shard_set.index import (
    INDEX_DTYPE,
    check_labels,
    check_shard_sizes,
    read_checksums,
    read_index,
    remedy,
)
from data_prep.shard_set.manifest import manifest_sha256
from pipeline.config.data import DataConfig
from pipeline.data.augment.crop_policy import CropPolicy
from pipeline.data.cache.remote_shards import RemoteShards
from pipeline.data.cache.shard_cache import ShardSet
from pipeline.data.readers.file_reader import FileReader
from pipeline.data.readers.sample_index import LocalFiles, SampleIndex
from pipeline.data.readers.stored_pixels import PixelReader


def open_reader(
    config: DataConfig,
    shards: ShardSet,
    split: str,
    crop_policy: CropPolicy,
    max_corrupt: int | None,
    files: RemoteShards | None,
) -> FileReader:
    """The reader of a split; `files` are its shards, if they are staged from a URL.

    The soft limit on open files is raised as far as is allowed: each shard is one. Raises
    `ShardSetError` if the shard set is not whole.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    match config.reader:
        case "beton":
            index = open_beton_index(Path(config.beton), shards, split)
        case "tar" | "remote" | "resident":
            index = _open_tars(shards, split, files)
        case unknown:
            assert_never(unknown)
    check_labels(index.rows["label"], shards.manifest.num_classes, f"{split} of {shards.folder}")
    is_copied = codec_of(index.encoding).is_raw and not crop_policy.scales
    kind = PixelReader if is_copied and index.files.are_lasting else FileReader
    return kind(index, crop_policy, max_corrupt, config.decode_threads)


def _open_tars(shards: ShardSet, split_name: str, files: RemoteShards | None) -> SampleIndex:
    """The images of one split in its tars, found by index: no tar is ever parsed."""
    folder, split = shards.folder, shards.manifest.split(split_name)
    rows, checksums = read_index(folder, split), read_checksums(folder, split)
    paths = split.shard_paths(folder)
    if files is None:
        check_shard_sizes(folder, split)
        what_to_do = remedy(folder)
    else:
        what_to_do = "delete it from the cache, and the next run fetches it again"
    return SampleIndex(
        encoding=shards.manifest.encoding,
        image_size=shards.manifest.image_size,
        rows=rows,
        checksums=checksums,
        prefix=b"",
        files=files or LocalFiles(paths),
        paths=paths,
        are_tars=True,
        remedy=what_to_do,
    )


def open_beton_index(path: Path, shards: ShardSet, split: str) -> SampleIndex:
    """The images of one split in the `.beton` of a shard set; nothing of ffcv is needed.

    Sample numbers are those of the split's index. Raises `ShardSetError` if the file is missing,
    cut, damaged in its tables, not finished, or of another shard set.
    """
    manifest = shards.manifest
    record, tables = open_beton(path, manifest_sha256(shards.folder))
    samples = record.samples_of(split)
    allocations = tables.allocations[samples]
    # A copy: mapped tables would end the process if the file is cut while it is read.
    rows = np.zeros(len(allocations), INDEX_DTYPE)
    rows["offset"], rows["num_bytes"] = allocations["ptr"], allocations["size"]
    rows["label"] = tables.rows["label"][samples]
    return SampleIndex(
        encoding=manifest.encoding,
        image_size=manifest.image_size,
        rows=rows,
        checksums=read_checksums(shards.folder, manifest.split(split)),
        prefix=codec_of(manifest.encoding).header(manifest.image_size),
        files=LocalFiles([path]),
        paths=[path],
        are_tars=False,
        remedy="copy it again, or write it again with 'python -m data_prep beton'",
    )
