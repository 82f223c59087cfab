"""What tests want of the machine: programs, small disks, processes; and how they wait."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

DEADLINE_SECONDS = 300.0
"""When to give up waiting: by then all is done that does not hang, however busy the machine is."""


def skip(message: str) -> NoReturn:
    """Skip the test, for want of what the message names; in CI it fails."""
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    """A file system of that size, such as 1m, is mounted at `path`."""
    path.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True).returncode:
        skip("a small file system cannot be mounted: not root, or in a container without mount")
    try:
        yield
    finally:
        # Lazily: a process that outlives its run, such as an exporter, may still have files there.
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def is_running(pid: int) -> bool:
    """Whether a process lives; one that ended and was not waited for does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def wait_until(is_so: Callable[[], bool]) -> None:
    """Poll until `is_so` is true; fail the test if that takes too long."""
    pause = threading.Event()
    for _ in range(int(DEADLINE_SECONDS / 0.005)):
        if is_so():
            return
        pause.wait(0.005)
    pytest.fail("it did not come about")
