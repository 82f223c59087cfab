"""Who is to blame for a hang, by what all ranks last said of themselves: a pure function.

A rank that waits for others is never the one to blame while they are at work. A rank whose
heartbeat stops is: its process is stopped, or hangs without giving Python a turn, or its host is
gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.ranks.failure import FirstFailure

_SILENT = "gives no sign of life"
SILENT_STORE = FirstFailure(
    f"rank 0 {_SILENT}: the store that it keeps does not answer", is_main_silent=True
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Heartbeat:
    """What a rank last said of itself."""

    count: int
    """Of its heartbeats: another number is a sign of life."""
    host: str
    phase: str
    """Its text."""
    step: int
    seconds: float
    """In this phase."""
    is_waiting: bool
    limit_seconds: float

    @property
    def is_overdue(self) -> bool:
        return self.seconds > self.limit_seconds

    def __str__(self) -> str:
        return f"{self.phase} after step {self.step} for {self.seconds:.0f} s"


def judge(
    before: Sequence[Heartbeat | None], now: Sequence[Heartbeat | None]
) -> FirstFailure | None:
    """Who hangs, by all ranks' heartbeats at two times more than a period apart; None: nobody.

    A heartbeat is None before a rank's first.
    """
    silent = {
        rank: f"rank {rank} on {new.host} {_SILENT}, {new}" if new else f"rank {rank} {_SILENT}"
        for rank, (old, new) in enumerate(zip(before, now, strict=True))
        if new is None or (old is not None and old.count == new.count)
    }
    if silent:
        reasons = "its process is stopped, or hangs in native code, or its host is gone"
        return FirstFailure(f"{', '.join(silent.values())}: {reasons}", is_main_silent=0 in silent)
    overdue = [(rank, last) for rank, last in enumerate(now) if last and last.is_overdue]
    busy = [
        f"rank {rank} on {last.host} hangs, {last}" for rank, last in overdue if not last.is_waiting
    ]
    if busy:
        return FirstFailure(", ".join(busy))
    if len(overdue) < len(now):  # somebody is at work, and the others wait for that
        return None
    first = min(last.step for _, last in overdue)
    behind = [f"rank {rank}, {last}" for rank, last in overdue if last.step == first]
    return FirstFailure(f"all ranks wait for each other: {', '.join(behind)}")
