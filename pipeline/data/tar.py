"""Images in the tars of a shard set, found by index: no tar is ever parsed."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path
from typing import Protocol

from data_prep.manifest import (
    Manifest,
    ShardSetError,
    Split,
    check_shard_sizes,
    read_checksums,
    read_index,
)
from pipeline.data.partition import Indices
from pipeline.data.places import Rows

_TAR_BLOCK_BYTES = 512
_TAR_NAME_BYTES = 100
_MEMBER = re.compile(rb"[A-Za-z0-9_-]+\.[a-z]+")


class ShardFiles(Protocol):
    """Gives out open shards, by number."""

    def open(self, number: int) -> int:
        """A descriptor that stays open until `close`; raises `ShardSetError`."""

    def close(self) -> None:
        """Close all that were opened."""


class TarPlaces:
    """The images of one split, in tars that `files` gives out; see `Places`."""

    prefix = b""

    def __init__(self, shards: Path, manifest: Manifest, split: str, files: ShardFiles) -> None:
        """`shards` is the folder of the index.

        Raises `ShardSetError` if the index is missing or not the manifest's.
        """
        self._shards = shards
        self._split = manifest.split(split)
        self._files = files
        self._index = read_index(shards, self._split)
        self.checksums = read_checksums(shards, self._split)
        self.num_samples = self._split.num_samples
        self.encoding = manifest.encoding
        self.image_size = manifest.image_size

    def rows(self, samples: Indices) -> Rows:
        return self._index[samples]

    def file(self, number: int) -> int:
        return self._files.open(number)

    def describe(self, file: int, offset: int) -> str:
        """Shard and member, the latter from the header before its content if that is whole."""
        path = self._shards / self._split.filenames[file]
        try:
            header = os.pread(self.file(file), _TAR_NAME_BYTES, offset - _TAR_BLOCK_BYTES)
        except OSError:
            header = b""
        name = header.split(b"\0", 1)[0]
        place = f"member {name.decode()}" if _MEMBER.fullmatch(name) else f"at byte {offset}"
        return f"shard {path}, {place}"

    def close(self) -> None:
        self._files.close()


class LocalFiles:
    """The shards of one split in a folder, all opened at once."""

    def __init__(self, shards: Path, split: Split) -> None:
        """Raises `ShardSetError` if a shard is missing or not as long as the manifest says."""
        check_shard_sizes(shards, split)
        self._files = _open_all([shards / name for name in split.filenames])

    def open(self, number: int) -> int:
        return self._files[number]

    def close(self) -> None:
        for file in self._files:
            os.close(file)
        self._files = []


def local_places(shards: Path, manifest: Manifest, split: str) -> TarPlaces:
    """The images of a split of a shard set on this host; raises `ShardSetError`."""
    files = LocalFiles(shards, manifest.split(split))
    try:
        return TarPlaces(shards, manifest, split, files)
    except BaseException:
        files.close()
        raise


def _open_all(paths: list[Path]) -> list[int]:
    """Open every shard once; the soft limit on open files is raised as far as is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    files: list[int] = []
    try:
        files.extend(os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths)
    except OSError as error:
        for file in files:
            os.close(file)
        raise ShardSetError(
            f"cannot open shard {error.filename}: {error.strerror} ({len(paths)} shards, limit of "
            f"open files {hard}); raise the limit with 'ulimit -Hn' or use larger shards"
        ) from None
    return files
