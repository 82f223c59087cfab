"""Images in the tars of a shard set, found by index: no tar is ever parsed."""

from __future__ import annotations

import contextlib
import os
import re
import resource
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from data_prep.shard_set.index import check_shard_sizes, read_checksums, read_index
from data_prep.shard_set.manifest import Manifest, ShardSetError, Split, remedy
from pipeline.data.order.partition import Indices
from pipeline.data.readers.sample_index import Rows

_TAR_BLOCK_BYTES = 512
_TAR_NAME_BYTES = 100
_MEMBER = re.compile(rb"[A-Za-z0-9_-]+\.[a-z]+")


class ShardFiles(Protocol):
    """Gives out open shards, by number; see `SampleIndex`."""

    are_lasting: bool

    def reading(self, shard: int) -> AbstractContextManager[int]: ...

    def give_up(self) -> None: ...

    def close(self) -> None: ...


class TarSampleIndex:
    """The images of one split, in tars that `files` gives out; see `SampleIndex`."""

    prefix = b""

    def __init__(self, shards: Path, manifest: Manifest, split: str, files: ShardFiles) -> None:
        """`shards` is the folder of the index.

        Raises `ShardSetError` if the index is missing or not the manifest's.
        """
        raise_file_limit()
        self._shards = shards
        self._split = manifest.split(split)
        self._files = files
        self._index = read_index(shards, self._split)
        self.checksums = read_checksums(shards, self._split)
        self.num_samples = self._split.num_samples
        self.encoding = manifest.encoding
        self.image_size = manifest.image_size
        self.are_lasting = files.are_lasting

    @property
    def remedy(self) -> str:
        if not self._files.are_lasting:
            return "delete it from the cache, and the next run fetches it again"
        return remedy(self._shards)

    def rows(self, samples: Indices) -> Rows:
        return self._index[samples]

    def reading(self, file: int) -> AbstractContextManager[int]:
        return self._files.reading(file)

    def name(self, file: int) -> str:
        return self._split.filenames[file]

    def describe(self, file: int, offset: int) -> str:
        """Shard and member, the latter from the header before its content if that is whole."""
        path = self._shards / self._split.filenames[file]
        try:
            with self.reading(file) as handle:
                header = os.pread(handle, _TAR_NAME_BYTES, offset - _TAR_BLOCK_BYTES)
        except OSError:
            header = b""
        name = header.split(b"\0", 1)[0]
        place = f"member {name.decode()}" if _MEMBER.fullmatch(name) else f"at byte {offset}"
        return f"shard {path}, {place}"

    def give_up(self) -> None:
        self._files.give_up()

    def close(self) -> None:
        self._files.close()


def raise_file_limit() -> int:
    """Raise the soft limit of open files, of which each shard is one; returns what is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class LocalFiles:
    """The shards of one split in a folder, all opened at once."""

    are_lasting = True

    def __init__(self, shards: Path, split: Split) -> None:
        """Raises `ShardSetError` if a shard is missing or not as long as the manifest says."""
        check_shard_sizes(shards, split)
        self._files = _open_all([shards / name for name in split.filenames])

    def reading(self, shard: int) -> AbstractContextManager[int]:
        return contextlib.nullcontext(self._files[shard])

    def give_up(self) -> None:
        """Nobody ever waits."""

    def close(self) -> None:
        for file in self._files:
            os.close(file)
        self._files = []


def _open_all(paths: list[Path]) -> list[int]:
    """Open every shard once; the soft limit on open files is raised as far as is allowed."""
    limit = raise_file_limit()
    files: list[int] = []
    try:
        files.extend(os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths)
    except OSError as error:
        for file in files:
            os.close(file)
        raise ShardSetError(
            f"cannot open shard {error.filename}: {error.strerror} ({len(paths)} shards, limit of "
            f"open files {limit}); raise the limit with 'ulimit -Hn' or use larger shards"
        ) from None
    return files
