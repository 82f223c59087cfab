"""Locks between processes, on one host or on several that share a file system.

Every lock of the project is one of these: the kernel's, on an open file (flock). It ends when the
file is closed or the process dies, so a killed process leaves none behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

_LOOK_SECONDS = 0.01

_log = logging.getLogger(__name__)


def try_lock(file: int, *, shared: bool = False, wait_seconds: float = 0.0) -> bool:
    """Lock the open file; False if another process still holds it after `wait_seconds`.

    Shared locks exclude only exclusive ones. Raises `OSError` where the file system has no locks,
    such as Lustre without `-o flock`.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOOK_SECONDS)
        else:
            return True


def lock_if_possible(
    file: int, path: Path, *, shared: bool = False, wait_seconds: float = 0.0
) -> bool:
    """The same for the open file of `path`. Where there are no locks, warn and return True."""
    try:
        return try_lock(file, shared=shared, wait_seconds=wait_seconds)
    except OSError as error:
        _warn(path.parent, error.strerror)
        return True


def unlock(file: int) -> None:
    """Give up the lock of a file that stays open."""
    fcntl.flock(file, fcntl.LOCK_UN)


def has_name(file: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`; what was locked may have been removed."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path`, made if need be, until the block ends or the process dies.

    Raises `BlockingIOError` if another process still holds it after `wait_seconds`, and
    `FileNotFoundError` if another has just removed the file. Without locks it only warns.
    """
    with path.open("a+") as file:
        if not lock_if_possible(file.fileno(), path, shared=shared, wait_seconds=wait_seconds):
            raise BlockingIOError(f"another process holds {path}")
        if not has_name(file.fileno(), path):
            raise FileNotFoundError(f"{path} was removed and made again")
        yield


@functools.cache
def _warn(folder: Path, reason: str) -> None:
    """Warn once for each folder."""
    _log.warning(
        "cannot lock files in %s: %s; going on without: see that no other process writes there",
        folder,
        reason,
    )


def is_locked(path: Path) -> bool | None:
    """Whether a process holds the lock file exclusively; None if that cannot be determined."""
    try:
        if path.exists() and not path.is_file():
            return None  # a pipe would keep whoever opens it
        with path.open("rb") as file:
            return not try_lock(file.fileno(), shared=True)
    except FileNotFoundError:
        return False
    except OSError:
        return None
