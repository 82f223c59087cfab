"""The samples of a shard set in the order of its `.beton`, as ffcv is to store them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, assert_never

import numpy as np
import numpy.typing as npt

from data_prep.convert.images import encode_npy
from data_prep.shard_set.beton_format import MODES
from data_prep.shard_set.index import check_shard_sizes, read_checksums, read_index
from data_prep.shard_set.manifest import Manifest, ShardSetError, Split, remedy
from data_prep.shard_set.pixels import jpeg_size

_ORDER = ("train", "val")


@dataclass(frozen=True, slots=True)
class BetonImage:
    """An image and what its row says of it."""

    mode: int
    height: int
    width: int
    content: bytes
    """The JPEG as it is in the shard, or the pixels, uint8 H×W×3 row by row."""


class ShardSamples:
    """All samples of a shard set: those of `train` in the order of the index, then those of `val`.

    Raises `ShardSetError` if shards, indexes or checksums are missing or not the manifest's.
    """

    def __init__(self, shards: Path, manifest: Manifest) -> None:
        splits = [manifest.split(name) for name in _ORDER if name in manifest.splits]
        self.num_by_split = {split.name: split.num_samples for split in splits}
        self.encoding = manifest.encoding
        self._paths = [shards / name for split in splits for name in split.filenames]
        self._index = _join_indexes(shards, splits)
        self._checksums = np.concatenate([read_checksums(shards, split) for split in splits])
        self._shape = (manifest.image_height or 0, manifest.image_width or 0, 3)
        """Of every image with encoding `rgb`."""
        self._header = self._header_of_members()
        self._open: tuple[int, BinaryIO] | None = None

    def _header_of_members(self) -> bytes:
        """What precedes the content of the image in every member."""
        match self.encoding:
            case "jpeg":
                return b""
            case "rgb":
                return encode_npy(np.zeros(self._shape, np.uint8))[: -np.prod(self._shape)]
            case unknown:
                assert_never(unknown)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def labels(self) -> npt.NDArray[np.uint32]:
        return self._index["label"]

    @property
    def image_bytes(self) -> npt.NDArray[np.uint32]:
        """Length of each sample's `BetonImage.content`."""
        return self._index["num_bytes"] - np.uint32(len(self._header))

    def __getitem__(self, number: int) -> tuple[BetonImage, int]:
        """An image and its label; fastest in order. Raises `ShardSetError` if it is damaged."""
        content = self._read(number)
        try:
            height, width = self._size_of(content)
        except ValueError as error:
            raise self._complaint(number, str(error)) from None
        image = BetonImage(MODES[self.encoding], height, width, content[len(self._header) :])
        return image, int(self._index["label"][number])

    def _read(self, number: int) -> bytes:
        """The image member."""
        shard, offset, num_bytes, _ = self._index[number].tolist()
        if self._open is None or self._open[0] != shard:
            self.close()
            self._open = shard, self._paths[shard].open("rb")
        file = self._open[1]
        file.seek(offset)
        return file.read(num_bytes)

    def _size_of(self, content: bytes) -> tuple[int, int]:
        """Height and width; raises `ValueError` if it is not what the encoding says."""
        match self.encoding:
            case "jpeg":
                return jpeg_size(content)
            case "rgb":
                is_whole = len(content) == len(self._header) + np.prod(self._shape)
                if not is_whole or not content.startswith(self._header):
                    raise ValueError(f"not an .npy of uint8{list(self._shape)}")
                return self._shape[:2]
            case unknown:
                assert_never(unknown)

    def check(self, number: int, stored: bytes) -> None:
        """Compare a stored `BetonImage.content` with what was written into the shard.

        By the shard set's checksums. Raises `ShardSetError` if it is something else.
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
    """`INDEX_DTYPE[num_samples]`, in which `shard` counts on from split to split."""
    parts, num_shards = [], 0
    for split in splits:
        check_shard_sizes(shards, split)
        part = read_index(shards, split).copy()
        part["shard"] += num_shards
        num_shards += len(split.filenames)
        parts.append(part)
    return np.concatenate(parts)
