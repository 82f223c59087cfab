"""The processes that this one has started, directly or not, and their end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Collection, Iterator
from pathlib import Path

_SUBREAPER = 36  # of linux/prctl.h


def adopt_orphans() -> None:
    """From now on a descendant whose parent dies becomes a child of this process: none is lost."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1)


def descendants(pid: int | None = None) -> Iterator[int]:
    """Of a process; None: of this one."""
    for path in Path(f"/proc/{pid or os.getpid()}/task").glob("*/children"):
        children: list[int] = []
        with contextlib.suppress(OSError):  # it has ended by now
            children = [int(word) for word in path.read_text().split()]
        for child in children:
            yield child
            yield from descendants(child)


def words_of(pid: int) -> list[str]:
    """Its command line; empty if it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    return []


def end_descendants(but: Collection[int]) -> None:
    """Kill all but these and theirs, and wait for them."""
    kept = {*but}.union(*map(descendants, but))
    while doomed := [pid for pid in descendants() if pid not in kept]:
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        reap(doomed)
        time.sleep(0.01)


def reap(pids: Collection[int]) -> None:
    """Collect those that have ended and are children: orphans have nobody else to do that."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
