"""What programs of the system say, and the kernel of this host of processes that it ended."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from pipeline.metrics.rank_file import Writer

_ANSWER_SECONDS = 10.0


def said(*command: str) -> str | None:
    """What a program of the system prints; None if it is not there, fails or does not answer."""
    if shutil.which(command[0]) is None:
        return None
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ANSWER_SECONDS,
            check=False,
        )
        return done.stdout if done.returncode == 0 else None
    return None


def kernel_says(writer: Writer) -> str | None:
    """That it ended this process of this host for want of memory; None if it does not say so."""
    began = writer.start_ticks / os.sysconf("SC_CLK_TCK")
    pattern = rf"\[ *(\d+\.\d+)\].*?((?:Out of memory|[\w ]*out of memory): .*\b{writer.pid}\b.*)"
    for match in re.finditer(pattern, said("dmesg") or ""):
        if float(match[1]) >= began:  # else it was another process of that number
            return match[2]
    return None


def booted() -> float:
    """When this host was started, in Unix seconds."""
    lines = Path("/proc/stat").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("btime "))
