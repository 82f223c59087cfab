"""Where the images of a `.beton` are: one file instead of many shards, read by offset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.beton_format import open_beton
from data_prep.manifest import Encoding, manifest_sha256

_PLACE_DTYPE = np.dtype([("offset", "<u8"), ("num_bytes", "<u4")])


class BetonFile:
    """The samples of one split in the `.beton` of a shard set.

    Sample numbers are those of the split's index, so both give the same image for a number.
    Nothing of ffcv is loaded or needed. Raises `ShardSetError` if the file is missing, cut, damaged
    in its tables, not finished, or of another shard set.
    """

    def __init__(self, path: Path, shards: Path, split: str) -> None:
        self.path = path
        record, self._tables = open_beton(path, manifest_sha256(shards))
        self.encoding: Encoding = record.encoding
        """`jpeg`: an image's bytes are a JPEG; `rgb`: its pixels, uint8 H×W×3 row by row."""
        self._samples = record.samples_of(split)
        self.num_samples = self._samples.stop - self._samples.start

    def labels(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Labels of the sample numbers, `int64`."""
        return self._tables.rows["label"][self._samples][samples].astype(np.int64)

    def places(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
        """Where the images of the sample numbers are in the file: `offset` u8, `num_bytes` u4."""
        allocations = self._tables.allocations[self._samples][samples]
        places = np.empty(len(samples), _PLACE_DTYPE)
        places["offset"], places["num_bytes"] = allocations["ptr"], allocations["size"]
        return places
