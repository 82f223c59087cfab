"""The samples of a shard set in the order of its `.beton`, as ffcv is to store them."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from data_prep.shard_set.codec import codec_of
from data_prep.shard_set.index import check_shard_sizes, read_checksums, read_index, remedy
from data_prep.shard_set.manifest import Manifest, ShardSetError, Split

_ORDER = ("train", "val")


BetonImage = tuple[int, int, bytes]
"""Height, width, and the JPEG as it is in the shard, or the pixels, uint8 H×W×3 row by row."""


class ShardSamples:
    """All samples of a shard set: those of `train` in the order of the index, then those of `val`.

    Raises `ShardSetError` if shards, indexes or checksums are missing or not the manifest's.
    """

    def __init__(self, shards: Path, manifest: Manifest) -> None:
        splits = [manifest.split(name) for name in _ORDER if name in manifest.splits]
        self.num_by_split = {split.name: split.num_samples for split in splits}
        self._codec = codec_of(manifest.encoding)
        if self._codec.beton_mode is None:
            raise ShardSetError(
                f"a .beton cannot hold images of encoding {manifest.encoding}: convert the data "
                "with --encoding jpeg or rgb"
            )
        self.mode = self._codec.beton_mode
        self._paths = [path for split in splits for path in split.shard_paths(shards)]
        self._index = _join_indexes(shards, splits)
        self._checksums = np.concatenate([read_checksums(shards, split) for split in splits])
        self._image_size = manifest.image_size
        self._header = self._codec.header(manifest.image_size)
        self._open: tuple[int, BinaryIO] | None = None

    def __len__(self) -> int:
        return len(self._index)

    @property
    def labels(self) -> npt.NDArray[np.uint32]:
        return self._index["label"]

    @property
    def image_bytes(self) -> npt.NDArray[np.uint32]:
        """Number of bytes that are stored of each sample."""
        return self._index["num_bytes"] - np.uint32(len(self._header))

    def __getitem__(self, number: int) -> tuple[BetonImage, int]:
        """An image and its label; fastest in order. Raises `ShardSetError` if it is damaged."""
        content = self._read(number)
        try:
            height, width = self._codec.check_size(content, self._image_size)
        except ValueError as error:
            raise self._complaint(number, str(error)) from None
        size = height // self._codec.beton_rows, width
        return (*size, content[len(self._header) :]), int(self._index["label"][number])

    def _read(self, number: int) -> bytes:
        """The image member."""
        shard, offset, num_bytes, _ = self._index[number].tolist()
        if self._open is None or self._open[0] != shard:
            self.close()
            self._open = shard, self._paths[shard].open("rb")
        file = self._open[1]
        file.seek(offset)
        return file.read(num_bytes)

    def check(self, number: int, stored: bytes) -> None:
        """Compare what is stored of a sample with the checksum of its image in the shard.

        Raises `ShardSetError` if they differ.
        """
        found = zlib.crc32(stored, zlib.crc32(self._header))
        if found != int(self._checksums[number]):
            raise self._complaint(number, "its image is not the one that was written (CRC-32)")

    def _complaint(self, number: int, what: str) -> ShardSetError:
        shard, offset, _, _ = self._index[number].tolist()
        return ShardSetError(
            f"shard {self._paths[shard]}, at byte {offset}: {what}; "
            f"{remedy(self._paths[shard].parent)}"
        )

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None


def _join_indexes(shards: Path, splits: list[Split]) -> npt.NDArray[np.void]:
    """`INDEX_DTYPE[num_samples]`; `shard` numbers the shards of all splits."""
    parts, num_shards = [], 0
    for split in splits:
        check_shard_sizes(shards, split)
        part = read_index(shards, split).copy()
        part["shard"] += num_shards
        num_shards += len(split.filenames)
        parts.append(part)
    return np.concatenate(parts)
