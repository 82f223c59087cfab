"""What asks a job to leave: signals, and the end of the process that looks after its ranks.

Apart, so that a launcher need not load torch for them.
"""

from __future__ import annotations

import signal

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

AGENT_VARIABLE = "ALEXNET_AGENT"
"""Environment variable in which a launcher tells ranks the process that looks after them."""


def heeded_signals() -> list[signal.Signals]:
    """Of `STOP_SIGNALS`: a hangup that nohup has warded off is none."""
    is_warded_off = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in STOP_SIGNALS if number != signal.SIGHUP or not is_warded_off]
