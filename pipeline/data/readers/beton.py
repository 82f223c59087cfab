"""Where the images of a `.beton` are: one file instead of many shards, read by offset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.shard_set.beton_format import BetonTables, open_beton
from data_prep.shard_set.codec import codec_of
from data_prep.shard_set.index import INDEX_DTYPE, read_checksums
from data_prep.shard_set.manifest import Manifest, manifest_sha256
from pipeline.data.readers.sample_index import LocalFiles, SampleIndex


def open_beton_index(path: Path, shards: Path, manifest: Manifest, split: str) -> SampleIndex:
    """The images of one split in the `.beton` of a shard set.

    Sample numbers are those of the split's index. Nothing of ffcv is loaded or needed. Raises
    `ShardSetError` if the file is missing, cut, damaged in its tables, not finished, or of another
    shard set.
    """
    record, tables = open_beton(path, manifest_sha256(shards))
    return SampleIndex(
        encoding=manifest.encoding,
        image_size=manifest.image_size,
        rows=_rows_of(tables, record.samples_of(split)),
        checksums=read_checksums(shards, manifest.split(split)),
        prefix=codec_of(manifest.encoding).header(manifest.image_size),
        files=LocalFiles([path]),
        paths=[path],
        are_tars=False,
        remedy="copy it again, or write it again with 'python -m data_prep beton'",
    )


def _rows_of(tables: BetonTables, samples: slice) -> npt.NDArray[np.void]:
    """A copy: tables that are mapped would end the process if the file is cut while it is read."""
    allocations = tables.allocations[samples]
    rows = np.zeros(len(allocations), INDEX_DTYPE)
    rows["offset"], rows["num_bytes"] = allocations["ptr"], allocations["size"]
    rows["label"] = tables.rows["label"][samples]
    return rows
