"""How much memory this host has left."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

MOST_OF_FREE = 0.8
"""The share of what is free that one thing may take."""


def host_free_bytes(root: Path = Path("/")) -> int:
    """Free memory of the host, or of the control group that limits this process."""
    (available,) = re.findall(r"MemAvailable: +(\d+) kB", (root / "proc/meminfo").read_text())
    free = int(available) * 1024
    group = root / "sys/fs/cgroup"
    with contextlib.suppress(FileNotFoundError, ValueError):  # no group, or the limit is "max"
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        sizes = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        cached = int(sizes["inactive_file"]) + int(sizes["active_file"])  # freed on demand
        free = min(free, limit - used + cached)
    return max(0, free)
