"""What each fault has cost, by the times of the steps behind the final weights.

Between two such steps pass the seconds of one, unless something came between: another attempt, with
what was done and lost before it; a standstill; the first steps of an attempt, which are slower. The
rest of those seconds is lost, and counts for the last fault before the second of both steps. So the
time from the first step to the last is that of all steps, at the pace of those that nothing came
between, and what is lost.
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
    """From the fault to the first step behind the final weights that the last attempt after it has
    done; if no attempt began, to the next such step. None: there was none before the next fault."""
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
    gaps = list(_gaps(history.steps))
    usual = statistics.median(gap.seconds for gap in gaps) if gaps else math.nan
    quiet = [
        gap.seconds for gap in gaps if not gap.is_first and gap.seconds < STANDSTILL_STEPS * usual
    ]
    if not quiet:
        raise ValueError(f"none of {len(history.steps)} steps was undisturbed: take more time")
    pace = statistics.fmean(quiet)
    wall = history.steps[-1].time - history.steps[0].time
    ends = [*(fault.time for fault in faults), history.steps[-1].time][1:]
    costs = []
    for fault, end in zip(faults, ends, strict=True):
        own = [gap for gap in gaps if fault.time < gap.end <= end]
        begun = [gap.end for gap in own if gap.begins_attempt]
        after = begun[-1:] or [gap.end for gap in own[:1]]
        disturbed = [gap for gap in own if gap.is_first or gap.seconds >= STANDSTILL_STEPS * usual]
        costs.append(
            Cost(
                kind=fault.kind,
                seconds=end - fault.time,
                lost_seconds=sum(gap.seconds - pace for gap in disturbed),
                next_step_seconds=after[0] - fault.time if after else None,
                num_attempts=sum(fault.time < begin <= end for begin in history.begins),
            )
        )
    return Goodput(step_seconds=pace, wall_seconds=wall, share=len(gaps) * pace / wall, costs=costs)


@dataclass(frozen=True, slots=True)
class _Gap:
    """Between two steps behind the final weights."""

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
