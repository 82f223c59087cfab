"""The files that a split lies in, as open descriptors."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from data_prep.shard_set.manifest import ShardSetError


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


def raise_file_limit() -> int:
    """Raise the soft limit of open files, of which each shard is one; returns what is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class LocalFiles:
    """Files on this host, all opened at once."""

    are_lasting = True

    def __init__(self, paths: Sequence[Path]) -> None:
        """The soft limit on open files is raised as far as is allowed."""
        limit = raise_file_limit()
        self._files: list[int] = []
        try:
            self._files.extend(os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths)
        except OSError as error:
            self.close()
            raise ShardSetError(
                f"cannot open shard {error.filename}: {error.strerror} ({len(paths)} shards, limit "
                f"of open files {limit}); raise the limit with 'ulimit -Hn' or use larger shards"
            ) from None

    def reading(self, number: int) -> AbstractContextManager[int]:
        return contextlib.nullcontext(self._files[number])

    def close(self) -> None:
        while self._files:
            os.close(self._files.pop())
