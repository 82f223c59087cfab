"""Locks between processes, on one host or on several that share a file system."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from data_prep.shard_set.files import UNSUPPORTED

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path`, made if need be, until the block ends or the process dies.

    A `shared` lock suffers other shared ones. Raises `BlockingIOError` if another process holds it,
    unless told to `wait`, and `FileNotFoundError` if another removed the file just now. Where the
    file system has no locks it warns, and goes on without.
    """
    with path.open("a+") as file:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(file, kind | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in (*UNSUPPORTED, errno.ENOLCK):
                raise
            _warn(path.parent, error.strerror)
        if not os.path.samestat(path.stat(), os.fstat(file.fileno())):
            raise FileNotFoundError(f"{path} was removed and made again")
        yield


@functools.cache
def _warn(folder: Path, reason: str) -> None:
    """Once a folder."""
    _log.warning(
        "cannot lock files in %s: %s; going on without: see that no other process writes there",
        folder,
        reason,
    )


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock file for itself."""
    try:
        with locked(path, shared=True):
            return False
    except BlockingIOError:
        return True
