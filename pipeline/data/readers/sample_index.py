"""Sample index: the files of a split, where each image is in them, and what reading it costs."""

from __future__ import annotations

import contextlib
import os
import re
import resource
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from data_prep.shard_set.checksum import crc32
from data_prep.shard_set.manifest import Encoding, ShardSetError
from pipeline.data.augment.crop_policy import ImageSize

_TAR_BLOCK_BYTES = 512
_TAR_NAME_BYTES = 100
_MEMBER = re.compile(rb"[A-Za-z0-9_-]+\.[a-z]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """A damaged image of a split; another one is read instead."""

    sample: int
    """Its number in the split."""
    shard: str
    """The file it is in."""
    what: str
    """What is wrong with it, and where it is."""


@dataclass(slots=True)
class ReadCost:
    """What reading cost so far; the seconds are summed over the reader's threads."""

    num_samples: int = 0
    num_bytes: int = 0
    read_seconds: float = 0.0
    decode_seconds: float = 0.0
    num_replaced: int = 0
    """Samples that another one was read for."""
    damages: list[Damage] = field(default_factory=list)
    """Damaged images that were found since the last time."""

    def add(self, other: ReadCost) -> None:
        self.num_samples += other.num_samples
        self.num_bytes += other.num_bytes
        self.read_seconds += other.read_seconds
        self.decode_seconds += other.decode_seconds
        self.num_replaced += other.num_replaced
        self.damages += other.damages


class CorruptImage(Exception):
    """The bytes of an image are not those that were written."""


class Files(Protocol):
    """Gives out open files, by number."""

    are_lasting: bool
    """Whether every file is there all the time, so that it can be mapped into memory."""

    def reading(self, number: int, /) -> AbstractContextManager[int]:
        """The file as a descriptor while a block runs; may wait until it is there.

        Raises `ShardSetError` if it cannot be had.
        """

    def close(self) -> None:
        """Close all files."""


class LocalFiles:
    """Files on this host, all opened at once."""

    are_lasting = True

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files: list[int] = []
        try:
            self._files.extend(os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths)
        except OSError as error:
            self.close()
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            raise ShardSetError(
                f"cannot open shard {error.filename}: {error.strerror} ({len(paths)} shards, limit "
                f"of open files {limit}); raise the limit with 'ulimit -Hn' or use larger shards"
            ) from None

    def reading(self, number: int) -> AbstractContextManager[int]:
        return contextlib.nullcontext(self._files[number])

    def close(self) -> None:
        while self._files:
            os.close(self._files.pop())


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleIndex:
    """The images of one split, however they are stored."""

    encoding: Encoding
    image_size: ImageSize | None
    """None if the images differ in size."""
    rows: npt.NDArray[np.void]
    """`data_prep.shard_set.index.INDEX_DTYPE[num_samples]`; `shard` counts `files`."""
    checksums: npt.NDArray[np.uint32]
    """CRC-32 of each sample's content, with `prefix` before it."""
    prefix: bytes
    """What a row leaves out of the content that the checksum is of."""
    files: Files
    paths: Sequence[Path]
    """Of `files`, for errors."""
    are_tars: bool
    remedy: str
    """What to do about damage, for the end of an error."""

    def row(self, sample: int) -> tuple[int, int, int, int]:
        """File, offset, number of bytes and label."""
        row: tuple[int, int, int, int] = self.rows[sample].item()
        return row

    def read(self, sample: int, cost: ReadCost) -> bytes:
        """The content of a sample; raises `CorruptImage` if the disk does not give it all."""
        file, offset, num_bytes, _ = self.row(sample)
        with self.files.reading(file) as handle:
            try:
                content = os.pread(handle, num_bytes, offset)
            except OSError as error:
                raise CorruptImage(str(error)) from None
        cost.num_bytes += len(content)
        if len(content) < num_bytes:
            raise CorruptImage(f"cut off, {len(content)} of {num_bytes} bytes")
        return content

    def read_verified(self, sample: int, cost: ReadCost) -> bytes:
        """The same behind `prefix`; raises `CorruptImage` if it does not match its checksum."""
        content = self.prefix + self.read(sample, cost)
        if crc32(content) != int(self.checksums[sample]):
            raise CorruptImage("not the image that was written (CRC-32)")
        return content

    def path_of(self, sample: int) -> Path:
        return self.paths[self.row(sample)[0]]

    def describe(self, sample: int) -> str:
        """File and place, for an error: in a tar the member, if the header before it is whole."""
        file, offset, _, _ = self.row(sample)
        if not self.are_tars:
            return f"{self.paths[file]}, at byte {offset}"
        try:
            with self.files.reading(file) as handle:
                header = os.pread(handle, _TAR_NAME_BYTES, offset - _TAR_BLOCK_BYTES)
        except OSError:
            header = b""
        name = header.split(b"\0", 1)[0]
        place = f"member {name.decode()}" if _MEMBER.fullmatch(name) else f"at byte {offset}"
        return f"shard {self.paths[file]}, {place}"
