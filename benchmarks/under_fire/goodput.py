"""What each fault has cost, by the times of all steps.

Between two steps pass the seconds of one, unless something came between: another attempt; a
standstill; the first steps of an attempt, which are slower. The rest of those seconds is lost, and
counts for the last fault before the second of both steps. A step that is done again is lost, too,
and counts for the fault whose attempt began before it. So the time from the first step to the last
is that of the steps behind the final weights, at the pace of those that nothing came between, and
what is lost.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.under_fire.history import History, Step
from benchmarks.under_fire.schedule import Kind

STANDSTILL_STEPS = 10.0
"""So many steps of time between two of an attempt are no pace."""
FIRST_STEPS = 5
"""Of an attempt."""


@dataclass(frozen=True, slots=True)
class Caused:
    """A fault that was caused, and when (Unix seconds)."""

    kind: Kind
    time: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    kind: Kind
    seconds: float
    """Until the next fault, or the end."""
    lost_seconds: float
    """Of these."""
    next_step_seconds: float | None
    """From the fault to the first step of the last attempt that began because of it; if none did,
    to the next step. None: there was none before the next fault."""
    num_attempts: int
    """That began because of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Goodput:
    step_seconds: float
    """The undisturbed pace: a mean."""
    wall_seconds: float
    """From the first step to the last."""
    share: float
    """Of the time that was productive."""
    costs: Sequence[Cost]

    def share_of(self, kinds: Collection[Kind]) -> float | None:
        """The same of the time after faults of these kinds; None if there was none."""
        own = [cost for cost in self.costs if cost.kind in kinds]
        total = sum(cost.seconds for cost in own)
        return 1 - sum(cost.lost_seconds for cost in own) / total if own else None


def measure(history: History, faults: Sequence[Caused]) -> Goodput:
    """`faults` by their times. Raises `ValueError` if no two steps have nothing between them."""
    gaps = list(_gaps(history.done))
    limit = STANDSTILL_STEPS * statistics.median(gap.seconds for gap in gaps) if gaps else math.nan
    quiet = [gap.seconds for gap in gaps if not gap.is_first and 0 < gap.seconds < limit]
    if not quiet:
        raise ValueError(f"none of {len(history.done)} steps was undisturbed: take more time")
    pace, last = statistics.fmean(quiet), history.done[-1].time
    wall = last - history.done[0].time
    again = [history.begins[step.lost_by] for step in history.done if step.lost_by is not None]
    ends = [*(fault.time for fault in faults), last][1:]
    costs = []
    for fault, end in zip(faults, ends, strict=True):
        own = [gap for gap in gaps if fault.time < gap.end <= end]
        begun = [gap.end for gap in own if gap.begins_attempt]
        after = begun[-1:] or [gap.end for gap in own[:1]]
        disturbed = [gap.seconds for gap in own if gap.is_first or gap.seconds >= limit]
        num_again = sum(fault.time < begin <= end for begin in again)
        costs.append(
            Cost(
                kind=fault.kind,
                seconds=end - fault.time,
                lost_seconds=sum(disturbed) + (num_again - len(disturbed)) * pace,
                next_step_seconds=after[0] - fault.time if after else None,
                num_attempts=sum(fault.time < begin <= end for begin in history.begins),
            )
        )
    share = (len(history.kept) - 1) * pace / wall
    return Goodput(step_seconds=pace, wall_seconds=wall, share=share, costs=costs)


@dataclass(frozen=True, slots=True)
class _Gap:
    """Between two steps."""

    end: float
    seconds: float
    begins_attempt: bool
    is_first: bool
    """Whether its second step is one of the first of an attempt."""


def _gaps(steps: Sequence[Step]) -> Iterator[_Gap]:
    first = steps[0].number
    for before, step in pairwise(steps):
        begins_attempt = before.attempt != step.attempt
        first = step.number if begins_attempt else first
        is_first = step.number - first < FIRST_STEPS
        yield _Gap(step.time, step.time - before.time, begins_attempt, is_first)
