"""From a run's events to the figures of its report: pure functions.

They take all rows of the events, or the one history: `pipeline.run.event_log.history_of`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.run.ending import EndOutcome
from pipeline.run.event_log import (
    attempts_of,
    history_of,
    of_training,
    of_type,
    own_evaluations,
)
from pipeline.run.events import EndEvent, EvalEvent, Event, RunEvent, TrainEvent
from pipeline.run.phase import PHASE_LABELS, Label

_MAX_INTERVALS = 400
"""More points than this are not seen in a curve."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One process group; what it did may be void, because the next one went on from before."""

    rows: Sequence[Event]
    """One at least; none is a `RunEvent` if it failed before it began."""
    is_last: bool
    heard: float | None = None
    """When the next one found that this one was last heard of; None: it did not say."""

    @property
    def began(self) -> float:
        """When its first process did, in Unix seconds, or it was first heard of."""
        began: float | None = getattr(self.rows[0], "began", None)
        return self.rows[0].time if began is None else began

    @property
    def ended(self) -> float:
        """When it was last heard of, in Unix seconds."""
        return max(self.rows[-1].time, self.heard or 0.0)

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def gpu_seconds(self) -> float:
        """Its seconds on each of its GPUs; those of ranks on CPUs are not counted."""
        starts = of_type(self.rows, RunEvent)
        return sum(self.seconds * start.world_size for start in starts if start.device == "cuda")

    @property
    def outcome(self) -> Literal[EndOutcome, "killed", "unfinished"]:
        """How it left; killed: another one began, and it had not said how it ended."""
        last = self.rows[-1]
        if isinstance(last, EndEvent):
            return last.outcome
        return "unfinished" if self.is_last else "killed"

    @property
    def detail(self) -> str:
        """Why it failed, or its ranks."""
        last = self.rows[-1]
        if isinstance(last, EndEvent) and last.error:
            return last.error
        return "".join(describe_ranks(start) for start in of_type(self.rows, RunEvent))


def find_attempts(rows: Sequence[Event]) -> list[Attempt]:
    """The attempts of a run in their order; `rows` are all of it."""
    groups = attempts_of(rows)
    heard = [*(getattr(group[0], "heard", None) for group in groups[1:]), None]
    return [
        Attempt(group, is_last=group is groups[-1], heard=last)
        for group, last in zip(groups, heard, strict=False)
    ]


def describe_ranks(start: RunEvent) -> str:
    """The ranks of a process group and what they add up to, such as '2 × 64 images'."""
    ranks, local, rounds = start.world_size, start.local_batch_size, start.accumulation_steps
    replicas = start.global_batch_size // (local * rounds)
    accumulated = f" × {rounds} accumulated" if rounds > 1 else ""
    if replicas == ranks:
        return f"{ranks} × {local:,} images{accumulated}"
    pairs = "1 replica" if replicas == 1 else f"{replicas} replicas"
    return f"{ranks}, a column each: {pairs} × {local:,} images{accumulated}"


class Summary:
    """What the head of the report says; None where nothing was logged yet."""

    def __init__(self, rows: Sequence[Event]) -> None:
        """`rows` are all of the run."""
        events = history_of(rows)
        training, own = of_training(events), own_evaluations(events)
        starts, trains = of_type(events, RunEvent), of_type(events, TrainEvent)
        bounds = [event for event in training if isinstance(event, RunEvent | EndEvent)]
        end = bounds[-1] if bounds and isinstance(bounds[-1], EndEvent) else None
        self.outcome: Literal[EndOutcome, "unfinished"] = end.outcome if end else "unfinished"
        """Of the latest process group; unfinished: no end was logged."""
        self.error = end.error if end else None
        self.latest_start = starts[-1] if starts else None
        # The row of a checkpoint may come when later steps are done.
        newest = max(training, key=lambda row: row.step, default=None)
        self.step, self.epoch = (newest.step, newest.epoch) if newest else (0, 0.0)
        self.attempts = find_attempts(rows)
        self.training_seconds = sum(attempt.seconds for attempt in self.attempts)
        """Time of all attempts, without the pauses between them."""
        self.gpu_seconds = sum(attempt.gpu_seconds for attempt in self.attempts)
        pairs = itertools.pairwise(self.attempts)
        self.pause_seconds = sum(later.began - earlier.ended for earlier, later in pairs)
        self.final = own[-1] if own else None
        """The newest evaluation, whatever command made it."""
        alike = [event for event in own if event.views == own[-1].views]
        self.best1 = max(alike, key=lambda row: row.correct1, default=None)
        """The first evaluation with most images right, of those with as many views."""
        self.best5 = max(alike, key=lambda row: row.correct5 or 0, default=None)
        speeds = [row.images_per_second for row in trains]
        self.images_per_second = statistics.median(speeds) if speeds else None
        """Median over the log intervals."""
        phases = _sum_phases(trains)
        total = sum(phases.values())
        self.phase_shares = {name: part / total for name, part in phases.items()} if total else {}
        """Share of the training time by phase; empty before the first log interval."""


def evaluations(events: Sequence[Event]) -> list[EvalEvent]:
    """The newest evaluation of each step, by step, with as many views as training has."""
    own = own_evaluations(events)
    views = [event.views for event in own if event.by == "train"] or [event.views for event in own]
    newest = {event.step: event for event in own if event.views == views[-1]}
    return [newest[step] for step in sorted(newest)]


def intervals(events: Sequence[Event]) -> list[TrainEvent]:
    """The log intervals; if there are many, neighbours are one."""
    trains = of_type(events, TrainEvent)
    size = math.ceil(len(trains) / _MAX_INTERVALS) or 1
    return [_merge(trains[start : start + size]) for start in range(0, len(trains), size)]


def _merge(rows: Sequence[TrainEvent]) -> TrainEvent:
    """One interval with the seconds of all and the means of what is finite."""
    names = ("loss", "top1", "learning_rate", "images_per_second")
    means: dict[str, Any] = {name: _mean(getattr(row, name) for row in rows) for name in names}
    return dataclasses.replace(rows[-1], phase_seconds=_sum_phases(rows), **means)


def _mean(values: Iterable[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else math.nan


def _sum_phases(rows: Sequence[TrainEvent]) -> dict[Label, float]:
    return {label: sum(row.phase_seconds.get(label) or 0 for row in rows) for label in PHASE_LABELS}


def interval_edges(events: Sequence[Event], steps: Sequence[TrainEvent]) -> list[float]:
    """The epochs at which the `intervals` begin and end, one more than there are.

    The first begins where the run did: a fork does so in the middle of another run.
    """
    starts = of_type(events, RunEvent)
    begins = [row.epoch for row in (*starts[:1], *steps[:1])]  # the first start may be lost
    return [min(begins) if starts else 0.0, *(row.epoch for row in steps)]
