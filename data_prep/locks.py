"""Locks between processes, on one host or on several that share a file system."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path`, made if need be, until the block ends or the process dies.

    A `shared` lock suffers other shared ones. Raises `BlockingIOError` if another process holds it,
    unless told to `wait`, and `FileNotFoundError` if another removed the file just now.
    """
    with path.open("a+") as file:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(file, kind | (0 if wait else fcntl.LOCK_NB))
        if not os.path.samestat(path.stat(), os.fstat(file.fileno())):
            raise FileNotFoundError(f"{path} was removed and made again")
        yield


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock file for itself."""
    try:
        with locked(path, shared=True):
            return False
    except BlockingIOError:
        return True
