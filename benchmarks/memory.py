"""How much memory processes take, by what Linux says of them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

_POLL_SECONDS = 0.05


def private_bytes(pid: int) -> int:
    """Memory that the process shares with no other (its USS)."""
    fields = _smaps(pid)
    return fields["Private_Clean"] + fields["Private_Dirty"]


def tree_bytes(pid: int) -> int:
    """Memory of the process and all below it, shared pages counted once (the sum of their PSS)."""
    total = 0
    for member in tree(pid):
        with contextlib.suppress(OSError):  # it has just ended
            total += _smaps(member)["Pss"]
    return total


def peak_bytes(command: Sequence[object]) -> tuple[int, float]:
    """Run a command to its end; returns the most memory it had at a time, and its seconds.

    The memory is read every 50 ms. Raises `CalledProcessError` if the command fails.
    """
    begin = time.perf_counter()
    peak = 0
    with subprocess.Popen(list(map(str, command)), stdout=sys.stderr) as child:
        while child.poll() is None:
            peak = max(peak, tree_bytes(child.pid))
            time.sleep(_POLL_SECONDS)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, child.args)
    return peak, time.perf_counter() - begin


def tree(pid: int) -> Iterator[int]:
    """The process and all below it, as far as they are there."""
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from tree(int(child))


def _smaps(pid: int) -> dict[str, int]:
    """Bytes by field; raises `OSError` if the process has ended."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    rows = (line.partition(":") for line in text.splitlines()[1:])
    return {name: 1024 * int(value.split()[0]) for name, _, value in rows}
