"""How a rank ends: what its exit codes mean, and what asks it to leave.

That is signals, and the end of the process that looks after the ranks.
"""

from __future__ import annotations

import signal
from pathlib import Path

FAILED = 1
"""The rank failed."""

STOPPED = 75
"""The run was asked to stop and can go on: EX_TEMPFAIL of sysexits.h, 'try again'."""

INTERRUPTED = 130
"""Ctrl-C ended the rank on the spot, as shells have it."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

AGENT_VARIABLE = "ALEXNET_AGENT"
"""Environment variable in which a launcher tells ranks the process that looks after them."""

LAUNCHER_VARIABLE = "ALEXNET_LAUNCHER"
"""Environment variable in which a launcher names itself: what it starts ends when it is killed."""


def handled_signals() -> list[signal.Signals]:
    """Of `STOP_SIGNALS`: a hangup that nohup has warded off is none."""
    is_warded_off = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in STOP_SIGNALS if number != signal.SIGHUP or not is_warded_off]


def process_start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None if it is gone or a zombie.

    With the pid it names one process for as long as the host is up: pids are reused.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()  # the command's name may hold spaces
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
