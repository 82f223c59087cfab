"""The signals that ask a job to leave; apart, so that a launcher need not load torch for them."""

from __future__ import annotations

import signal

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def heeded_signals() -> list[signal.Signals]:
    """Of `STOP_SIGNALS`: a hangup that nohup has warded off is none."""
    is_warded_off = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in STOP_SIGNALS if number != signal.SIGHUP or not is_warded_off]
