"""A size-limited directory of files that several processes fill, use and empty at the same time.

    CACHE/.lock             locked while room is made
    CACHE/SET/NAME          a whole file; its readers share its lock
    CACHE/SET/.tmp-NAME     a file that is being staged, of its full size, locked by its writer
    CACHE/SET/.lock-NAME    shared by those who expect to read NAME soon; there for every shard

There is no other state: nobody alive needs a file that is not locked, so what a killed process
leaves blocks nobody. The directory must be on a file system with locks.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from data_prep.shard_set.files import (
    NO_ROOM,
    TEMPORARY_PREFIX,
    sha256_of,
    sync,
    sync_directory,
)
from data_prep.shard_set.locks import has_name, try_lock
from pipeline.data.cache.remote import Content

_LOCK_PREFIX = ".lock-"

_GLANCE_SECONDS = 1.0
"""Longer than another process takes to see whether a lock is free."""


def check_locks(cache: Path) -> None:
    """Raise `OSError` if files in the directory cannot be locked."""
    try:
        with (cache / ".lock").open("ab") as lock:
            try_lock(lock.fileno())
    except OSError as error:
        raise OSError(
            f"cannot lock files in {cache}: {error.strerror}; "
            "give a data.cache_dir on a local disk of this host"
        ) from None


class CacheFullError(OSError):
    """There is no room for a file, and nothing more can be evicted."""


def open_in_use(path: Path, content: Content) -> int | None:
    """Open a whole file of the cache for reading; it is not evicted until it is closed.

    None if it is not there or has another size, or another hash where the size is not known.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    if try_lock(file, shared=True, wait_seconds=_GLANCE_SECONDS) and has_name(file, path):
        size = content.num_bytes
        if os.fstat(file).st_size == size or (size is None and sha256_of(path) == content.sha256):
            _mark_used(file)
            return file
    os.close(file)
    return None


def _mark_used(file: int) -> None:
    now = time.time_ns()  # the file system's own clock ticks too seldom to tell which came first
    with contextlib.suppress(OSError):  # of another user
        os.utime(file, ns=(now, now))


def expect_use(path: Path) -> int:
    """Keep others that stage ahead from evicting the shard `path` until this is closed.

    The shard may not be there yet. Whoever needs room at once may still evict it.
    """
    lock = path.with_name(_LOCK_PREFIX + path.name)
    file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try_lock(file, shared=True, wait_seconds=_GLANCE_SECONDS)
    return file


@contextlib.contextmanager
def staging(path: Path) -> Iterator[BinaryIO | None]:
    """Yields the file that is to be published as `path`, empty; None if another process has it."""
    temporary = _temporary(path)
    file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with open(file, "r+b") as staged:  # noqa: PTH123 - it is open already
            if not try_lock(file) or not has_name(file, temporary):
                yield None
                return
            try:
                staged.truncate(0)  # of what a killed process has left
                yield staged
            finally:
                if has_name(file, temporary):
                    temporary.unlink()
    except OSError as error:
        if error.errno in NO_ROOM and error.filename is None:
            error.filename = str(path)
        raise


def publish(staged: BinaryIO, path: Path) -> int:
    """Give the file that `staging` yielded the name `path`; returns it as `open_in_use` does."""
    staged.flush()
    _mark_used(staged.fileno())
    sync(staged.fileno())
    _temporary(path).replace(path)
    try_lock(staged.fileno(), shared=True, wait_seconds=_GLANCE_SECONDS)
    sync_directory(path.parent)
    return os.dup(staged.fileno())


def make_room(
    path: Path, staged: BinaryIO, num_bytes: int, max_bytes: int | None, at_once: bool
) -> None:
    """Make `staged`, which is to become the shard `path`, `num_bytes` long.

    Shards that nobody reads are evicted, the least recently used first, until the cache is within
    `max_bytes` and the disk has room. Those that somebody expects to read are evicted only
    `at_once`. Raises `CacheFullError` if that is not enough.
    """
    cache = path.parent.parent
    os.close(expect_use(path))  # it is a shard from now on
    with (cache / ".lock").open("ab") as lock:
        try_lock(lock.fileno(), wait_seconds=math.inf)
        shards, used_bytes = _survey(cache)
        freed = _evict(shards, at_once)
        while True:
            is_over = max_bytes is not None and used_bytes + num_bytes > max_bytes
            if not is_over and _allocate(staged, num_bytes):
                return
            num_freed = next(freed, None)
            if num_freed is None:
                break
            used_bytes -= num_freed
    if is_over:
        raise CacheFullError(
            f"the cache {cache} has no room for {num_bytes:,} bytes: jobs on this host use "
            f"{used_bytes:,} of data.cache_bytes {max_bytes:,}; raise data.cache_bytes, "
            "lower data.shuffle_shards, or give each job another data.cache_dir"
        )
    disk = os.statvfs(cache)
    raise CacheFullError(
        f"the disk of the cache {cache} has no room for {num_bytes:,} bytes: "
        f"{disk.f_bavail * disk.f_frsize:,} are free, jobs on this host use {used_bytes:,} of "
        "the cache; free space, or give a data.cache_dir on a larger disk"
    )


def _survey(cache: Path) -> tuple[list[tuple[Path, int]], int]:
    """The whole shards with their sizes, the least recently used first, and the bytes of all.

    The latter include what is being staged. What killed processes were staging is deleted.
    """
    whole: list[tuple[int, Path, int]] = []
    sizes: dict[int, int] = {}
    for lock in cache.glob(f"*/{_LOCK_PREFIX}*"):
        path = lock.with_name(lock.name.removeprefix(_LOCK_PREFIX))
        temporary = _temporary(path)
        with contextlib.suppress(FileNotFoundError):
            if not _is_free(temporary, remove=True):
                found = temporary.stat()
                sizes[found.st_ino] = found.st_size
        # Afterwards: what gets its name meanwhile is then seen twice, with one number, not never.
        with contextlib.suppress(FileNotFoundError):
            found = path.stat()
            sizes[found.st_ino] = found.st_size
            whole.append((found.st_mtime_ns, path, found.st_size))
    return [(path, size) for _, path, size in sorted(whole)], sum(sizes.values())


def _evict(shards: list[tuple[Path, int]], at_once: bool) -> Iterator[int]:
    """Delete one shard after the other; yields their sizes."""
    expected = []
    for path, size in shards:
        if not _is_free(path.with_name(_LOCK_PREFIX + path.name)):
            expected.append((path, size))
        elif _is_free(path, remove=True):
            yield size
    for path, size in reversed(expected if at_once else []):  # what was staged last is needed last
        if _is_free(path, remove=True):
            yield size


def _is_free(path: Path, *, remove: bool = False) -> bool:
    """Whether nobody has a lock on the file; it is deleted then, if it is to be removed."""
    try:
        with path.open("rb") as file:
            is_free = try_lock(file.fileno())
            if is_free and remove and has_name(file.fileno(), path):
                path.unlink()
            return is_free
    except FileNotFoundError:
        return True


def _allocate(file: BinaryIO, num_bytes: int) -> bool:
    """Reserve the disk space, so that no later write fails for lack of it."""
    try:
        os.posix_fallocate(file.fileno(), 0, num_bytes)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        file.truncate(0)
        return False
    return True


def _temporary(path: Path) -> Path:
    return path.with_name(TEMPORARY_PREFIX + path.name)
