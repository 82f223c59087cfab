"""Where the images of a `.beton` are: one file instead of many shards, read by offset."""

from __future__ import annotations

import contextlib
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import assert_never

import numpy as np

from data_prep.shard_set.beton_format import BetonTables, open_beton
from data_prep.shard_set.index import INDEX_DTYPE, read_checksums
from data_prep.shard_set.manifest import Manifest, ShardSetError, manifest_sha256
from pipeline.data.augment.crop_policy import ImageSize
from pipeline.data.order.partition import Indices
from pipeline.data.readers.sample_index import Rows
from pipeline.data.readers.stored_pixels import npy_header


class BetonSampleIndex:
    """The images of one split in the `.beton` of a shard set; see `SampleIndex`.

    Sample numbers are those of the split's index. Nothing of ffcv is loaded or needed. Raises
    `ShardSetError` if the file is missing, cut, damaged in its tables, not finished, or of another
    shard set.
    """

    are_lasting = True
    remedy = "copy it again, or write it again with 'python -m data_prep beton'"

    def __init__(self, path: Path, shards: Path, manifest: Manifest, split: str) -> None:
        self._path = path
        record, tables = open_beton(path, manifest_sha256(shards))
        if record.encoding != manifest.encoding:
            raise ShardSetError(
                f"{path} says that its encoding is {record.encoding}; expected that of its shard "
                f"set, {manifest.encoding}: {self.remedy}"
            )
        self.encoding = manifest.encoding
        self.image_size = manifest.image_size
        self.prefix = self._prefix()
        self.checksums = read_checksums(shards, manifest.split(split))
        self._rows = _rows_of(tables, record.samples_of(split))
        self.num_samples = len(self._rows)
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def _prefix(self) -> bytes:
        match self.encoding:
            case "jpeg":
                return b""
            case "rgb":
                return npy_header((*self._size(), 3))
            case unknown:
                assert_never(unknown)

    def _size(self) -> ImageSize:
        assert self.image_size is not None, "stored pixels have one size"
        return self.image_size

    def rows(self, samples: Indices) -> Rows:
        return self._rows[samples]

    def reading(self, _file: int) -> AbstractContextManager[int]:
        return contextlib.nullcontext(self._file)

    def name(self, _file: int) -> str:
        return self._path.name

    def describe(self, _file: int, offset: int) -> str:
        return f"{self._path}, at byte {offset}"

    def give_up(self) -> None:
        """Nobody ever waits."""

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


def _rows_of(tables: BetonTables, samples: slice) -> Rows:
    """A copy: tables that are mapped would end the process if the file is cut while it is read."""
    allocations = tables.allocations[samples]
    rows = np.zeros(len(allocations), INDEX_DTYPE)
    rows["offset"], rows["num_bytes"] = allocations["ptr"], allocations["size"]
    rows["label"] = tables.rows["label"][samples]
    return rows
