"""A size-limited directory of files that several processes fill, use and empty at the same time.

    CACHE/.lock                      held for as long as it takes to make room
    CACHE/.wanted                    held while somebody needs room at once and there is none
    CACHE/SET/.lock-NAME             held while NAME is being staged; never deleted
    CACHE/SET/.tmp-NAME-…            what is being staged, already of its full size
    CACHE/SET/NAME                   a whole file; whoever uses it holds a shared lock on it

All locks are the kernel's (flock), so one that is killed leaves none. A file of a process that is
gone is known by its lock being free. The directory must be on a file system with locks.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data_prep.shard_set.files import TEMPORARY_PREFIX

_LOCK_PREFIX = ".lock-"
_WANTED = ".wanted"

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class CacheFullError(OSError):
    """There is no room for a file, and what could go has gone: what is left is in use."""


@dataclass(slots=True)
class _Occupancy:
    """What the files of a cache take up."""

    whole: list[tuple[Path, os.stat_result]]
    """Files that may go, the one that was not used for longest first."""
    num_bytes: int
    """Of all files, with those that are being staged."""


def open_in_use(path: Path, num_bytes: int) -> int | None:
    """Open a whole file of the cache for reading: until it is closed it is not evicted.

    None if it is not there, of another size, or on its way out. It counts as just used.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        found = os.fstat(handle)
        if found.st_nlink > 0 and found.st_size == num_bytes:
            mark_used(handle)
            return handle
    except BlockingIOError:
        pass
    except OSError as error:
        os.close(handle)
        raise _no_locks(path.parent, error) from None
    os.close(handle)
    return None


def mark_used(handle: int, seconds: float | None = None) -> None:
    """Note when an open file of the cache was last used: now, or at `seconds` of Unix time.

    What another user's job has staged keeps its time, as does all on a file system without times.
    """
    with contextlib.suppress(OSError):
        os.utime(handle, None if seconds is None else (seconds, seconds))


def open_staged(file: BinaryIO) -> int:
    """Open what has been staged, before it gets its final name, as `open_in_use` does after.

    In between nobody would be using it, and it could be evicted.
    """
    handle = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(handle, fcntl.LOCK_SH)
    return handle


@contextlib.contextmanager
def staging(path: Path) -> Iterator[bool]:
    """Lock `path` for staging for the block; False if another has it."""
    handle = _lock(path.with_name(_LOCK_PREFIX + path.name), wait=False)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)


def staged_parts(path: Path) -> list[Path]:
    """What processes, alive or not, have staged of `path` so far."""
    parts = path.parent.glob(f"{TEMPORARY_PREFIX}{path.name}-*")
    return [part for part in parts if _final_name(part) == path.name]


def has_room(path: Path, num_bytes: int) -> bool:
    """Whether room has been made for `path`, which is being staged or has been."""
    for part in [path, *staged_parts(path)]:
        with contextlib.suppress(FileNotFoundError):
            if part.stat().st_size == num_bytes:
                return True
    return False


def clear(path: Path) -> None:
    """Remove what a killed process has staged of `path`, and a damaged file of that name.

    Only for who may stage it, and when `open_in_use` has found nothing since.
    """
    for leftover in [*staged_parts(path), path]:
        leftover.unlink(missing_ok=True)


def reserve(cache: Path, file: BinaryIO, num_bytes: int, max_bytes: int | None) -> int:
    """Make `file`, an empty one being staged in `cache`, `num_bytes` long; returns evictions.

    Files that nobody uses go, those not used for longest first, until all are `max_bytes` together
    and the disk has room. Raises `CacheFullError` if what is left is in use.
    """
    handle = _lock(cache / ".lock", wait=True)
    assert handle is not None
    try:
        found = _survey(cache)
        before = len(found.whole)
        while max_bytes is not None and found.num_bytes + num_bytes > max_bytes:
            if not _evict_one(found):
                raise CacheFullError(_full(cache, num_bytes, found.num_bytes, max_bytes))
        while not _allocate(file, num_bytes):
            if not _evict_one(found):
                raise CacheFullError(_disk_full(cache, num_bytes, found.num_bytes))
        return before - len(found.whole)
    finally:
        os.close(handle)


@contextlib.contextmanager
def wanting_room(cache: Path) -> Iterator[None]:
    """Let `is_room_wanted` be true for all processes while the block runs."""
    handle = _lock(cache / _WANTED, wait=False)  # taken: it is true then, too
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def is_room_wanted(cache: Path) -> bool:
    """Whether somebody cannot go on for want of room: who stages ahead gives way then."""
    handle = os.open(cache / _WANTED, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _full(cache: Path, num_bytes: int, used_bytes: int, max_bytes: int) -> str:
    return (
        f"the cache {cache} has no room for {num_bytes:,} bytes: jobs on this host use "
        f"{used_bytes:,} of data.cache_bytes {max_bytes:,}; raise data.cache_bytes, lower "
        "data.shuffle_shards, or give each job another data.cache_dir"
    )


def _disk_full(cache: Path, num_bytes: int, used_bytes: int) -> str:
    disk = os.statvfs(cache)
    return (
        f"the disk of the cache {cache} has no room for {num_bytes:,} bytes: "
        f"{disk.f_bavail * disk.f_frsize:,} are free, jobs on this host use {used_bytes:,} of "
        "the cache; free space, or give a data.cache_dir on a larger disk"
    )


def _survey(cache: Path) -> _Occupancy:
    """What is in the cache, less what killed processes left half staged, which is deleted."""
    staged: dict[int, int] = {}
    # First: what gets its final name meanwhile is then seen twice and not never.
    for leftover in cache.glob(f"*/{TEMPORARY_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):
            number = leftover.stat().st_ino
            staged[number] = _bytes_of_live(leftover)
    whole: list[tuple[Path, os.stat_result]] = []
    for lock in cache.glob(f"*/{_LOCK_PREFIX}*"):
        path = lock.with_name(lock.name.removeprefix(_LOCK_PREFIX))
        with contextlib.suppress(FileNotFoundError):
            whole.append((path, path.stat()))
    for _, found in whole:
        staged.pop(found.st_ino, None)
    whole.sort(key=lambda entry: entry[1].st_mtime_ns)
    return _Occupancy(whole, sum(staged.values()) + sum(found.st_size for _, found in whole))


def _bytes_of_live(leftover: Path) -> int:
    """Size of what is being staged; a killed process's is deleted and takes nothing."""
    lock = leftover.with_name(_LOCK_PREFIX + _final_name(leftover))
    handle = _lock(lock, wait=False) if lock.exists() else None
    if handle is None:
        return leftover.stat().st_size
    leftover.unlink(missing_ok=True)
    os.close(handle)
    return 0


def _evict_one(found: _Occupancy) -> bool:
    """Delete the file that was not used for longest of those nobody uses, if there is one."""
    for number, (path, stat) in enumerate(found.whole):
        if _evict(path):
            found.num_bytes -= stat.st_size
            del found.whole[number]
            return True
    return False


def _evict(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def _allocate(file: BinaryIO, num_bytes: int) -> bool:
    """Take the disk space now: then no write of the file can fail for want of it."""
    try:
        os.posix_fallocate(file.fileno(), 0, num_bytes)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        file.truncate(0)
        return False
    return True


def _lock(path: Path, *, wait: bool) -> int | None:
    """Hold an exclusive lock until the open file that is returned is closed; None: it is taken."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError as error:
        os.close(handle)
        raise _no_locks(path.parent, error) from None
    return handle


def _no_locks(directory: Path, error: OSError) -> OSError:
    return OSError(
        f"cannot lock files in {directory}: {error.strerror}; "
        "give a data.cache_dir on a local disk of this host"
    )


def _final_name(leftover: Path) -> str:
    """The final name of what is being staged, see `data_prep.shard_set.files.atomic_writer`."""
    return leftover.name.removeprefix(TEMPORARY_PREFIX).rpartition("-")[0]
