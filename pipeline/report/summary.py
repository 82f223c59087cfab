"""From a run's events to the figures of its report: pure functions.

They take all rows of the events, or the one history: `pipeline.run.event_log.history_of`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.report.attempts import Attempt, find_attempts
from pipeline.run.ending import EndOutcome
from pipeline.run.event_log import history_of, of_training, of_type, own_evaluations
from pipeline.run.events import EndEvent, EvalEvent, Event, RunEvent, SignalEvent, TrainEvent
from pipeline.run.phase import PHASE_LABELS

_MAX_INTERVALS = 400
"""More points than this are not seen in a curve."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """One log interval, or several in a row merged; a value is NaN where none was finite."""

    first_epoch: float
    last_epoch: float
    loss: float
    top1: float
    learning_rate: float
    images_per_second: float
    phase_seconds: Mapping[str, float]
    """Seconds by phase, in the order of `PHASE_LABELS`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What the head of the report says; None where nothing was logged yet."""

    outcome: Literal[EndOutcome, "unfinished"]
    """Of the latest process group; unfinished: no end was logged."""
    error: str | None
    """Why a failed run failed."""
    latest_start: RunEvent | None
    step: int
    epoch: float
    attempts: tuple[Attempt, ...]
    num_resumes: int
    num_stop_requests: int
    final: EvalEvent | None
    """The newest evaluation, whatever command made it."""
    best1: EvalEvent | None
    """The evaluation with most images right, of those with as many views; the first of equals."""
    best5: EvalEvent | None
    images_per_second: float | None
    """Median over the log intervals."""
    phase_shares: Mapping[str, float]
    """Share of the training time by phase; empty before the first log interval."""

    @property
    def training_seconds(self) -> float:
        """Time of all attempts, without the pauses between them."""
        return sum(attempt.last_time - attempt.first_time for attempt in self.attempts)

    @property
    def pause_seconds(self) -> float:
        """Time between the attempts."""
        if not self.attempts:
            return 0.0
        elapsed = self.attempts[-1].last_time - self.attempts[0].first_time
        return elapsed - self.training_seconds


def evaluations(events: Sequence[Event]) -> list[EvalEvent]:
    """The newest evaluation of each step, by step, with as many views as training has."""
    own = own_evaluations(events)
    views = [event.views for event in own if event.by == "train"] or [event.views for event in own]
    newest = {event.step: event for event in own if event.views == views[-1]}
    return [newest[step] for step in sorted(newest)]


def summarize(rows: Sequence[Event]) -> Summary:
    """`rows` are all of the run."""
    events = history_of(rows)
    training = of_training(events)
    starts, trains = of_type(events, RunEvent), of_type(events, TrainEvent)
    own = own_evaluations(events)
    alike = [event for event in own if event.views == own[-1].views]
    end = _end(training)
    return Summary(
        outcome=end.outcome if end else "unfinished",
        error=end.error if end else None,
        latest_start=starts[-1] if starts else None,
        step=training[-1].step if training else 0,
        epoch=training[-1].epoch if training else 0.0,
        attempts=find_attempts(rows),
        num_resumes=sum(row.resumed_from is not None for row in starts),
        num_stop_requests=len(of_type(events, SignalEvent)),
        final=own[-1] if own else None,
        best1=max(alike, key=lambda row: row.correct1, default=None),
        best5=max(alike, key=lambda row: row.correct5 or 0, default=None),
        images_per_second=statistics.median(row.images_per_second for row in trains)
        if trains
        else None,
        phase_shares=shares(_sum_phases(trains)),
    )


def _end(events: Sequence[Event]) -> EndEvent | None:
    """How the latest process group of training left, or None if it has not."""
    bounds = [event for event in events if isinstance(event, RunEvent | EndEvent)]
    return bounds[-1] if bounds and isinstance(bounds[-1], EndEvent) else None


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Each phase's share of all seconds; empty where there are none."""
    total = sum(seconds.values())
    return {phase: part / total for phase, part in seconds.items()} if total > 0 else {}


def intervals(events: Sequence[Event]) -> list[Interval]:
    """The log intervals; if there are many, neighbours are merged.

    The first one begins where the run did: a fork, in the middle of another run.
    """
    trains = of_type(events, TrainEvent)
    per_group = math.ceil(len(trains) / _MAX_INTERVALS)
    merged: list[Interval] = []
    starts = of_type(events, RunEvent)
    begins = [row.epoch for row in (*starts[:1], *trains[:1])]  # the first start may be lost
    begin = min(begins) if starts else 0.0
    for start in range(0, len(trains), per_group or 1):
        rows = trains[start : start + per_group]
        merged.append(_merge(rows, begin))
        begin = merged[-1].last_epoch
    return merged


def _merge(rows: Sequence[TrainEvent], first_epoch: float) -> Interval:
    return Interval(
        first_epoch=first_epoch,
        last_epoch=rows[-1].epoch,
        loss=_mean(row.loss for row in rows),
        top1=_mean(row.top1 for row in rows),
        learning_rate=_mean(row.learning_rate for row in rows),
        images_per_second=_mean(row.images_per_second for row in rows),
        phase_seconds=_sum_phases(rows),
    )


def _mean(values: Iterable[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else math.nan


def _sum_phases(rows: Sequence[TrainEvent]) -> dict[str, float]:
    return {label: sum(row.phase_seconds.get(label) or 0 for row in rows) for label in PHASE_LABELS}
