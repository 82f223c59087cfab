"""From a run's events to the figures of its report: pure functions."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.events import Event
from pipeline.metrics import PHASES
from pipeline.report.inputs import SPLIT

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
    """Seconds by phase, in the order of `PHASES`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """What one process group did, from its start to the last event of it that counts."""

    first_time: float
    last_time: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What the head of the report says; None where nothing was logged yet."""

    outcome: str
    """completed, stopped, failed, or unfinished: no end was logged."""
    error: str | None
    """Why a failed run failed."""
    latest_start: Event | None
    step: int
    epoch: float
    attempts: tuple[Attempt, ...]
    num_stop_requests: int
    final: Event | None
    """The last evaluation."""
    best1: Event | None
    """The evaluation with most images right; the first of equals."""
    best5: Event | None
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


@dataclass(frozen=True, kw_only=True, slots=True)
class TimelineRow:
    """One thing that happened, or checkpoints in a row as one."""

    time: float
    step: int
    epoch: float
    what: str
    detail: str


def of_kind(events: Sequence[Event], kind: str) -> list[Event]:
    return [event for event in events if event["kind"] == kind]


def evaluations(events: Sequence[Event]) -> list[Event]:
    """The evaluations of the shown split, oldest first."""
    return [event for event in of_kind(events, "eval") if event["split"] == SPLIT]


def summarize(events: Sequence[Event]) -> Summary:
    starts, evals = of_kind(events, "run"), evaluations(events)
    trains = of_kind(events, "train")
    end = _end(events)
    speeds = [row["images_per_second"] for row in trains if row["images_per_second"] is not None]
    return Summary(
        outcome=end["outcome"] if end else "unfinished",
        error=end.get("error") if end else None,
        latest_start=starts[-1] if starts else None,
        step=events[-1]["step"] if events else 0,
        epoch=events[-1]["epoch"] if events else 0.0,
        attempts=_attempts(events),
        num_stop_requests=len(of_kind(events, "signal")),
        final=evals[-1] if evals else None,
        best1=max(evals, key=lambda row: row["correct1"], default=None),
        best5=max(evals, key=lambda row: row["correct5"], default=None),
        images_per_second=statistics.median(speeds) if speeds else None,
        phase_shares=shares(_sum_phases(trains)),
    )


def _end(events: Sequence[Event]) -> Event | None:
    """How the latest process group left, or None if it has not."""
    bounds = [event for event in events if event["kind"] in ("run", "end")]
    return bounds[-1] if bounds and bounds[-1]["kind"] == "end" else None


def _attempts(events: Sequence[Event]) -> tuple[Attempt, ...]:
    attempts: list[Attempt] = []
    for event in events:
        if event["kind"] == "run":
            attempts.append(Attempt(first_time=event["time"], last_time=event["time"]))
        elif attempts:
            attempts[-1] = Attempt(first_time=attempts[-1].first_time, last_time=event["time"])
    return tuple(attempts)


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Each phase's share of all seconds; empty where there are none."""
    total = sum(seconds.values())
    return {phase: part / total for phase, part in seconds.items()} if total > 0 else {}


def intervals(events: Sequence[Event]) -> list[Interval]:
    """The log intervals; if there are many, neighbours are merged."""
    trains = of_kind(events, "train")
    per_group = math.ceil(len(trains) / _MAX_INTERVALS)
    merged: list[Interval] = []
    begin = 0.0
    for start in range(0, len(trains), per_group or 1):
        rows = trains[start : start + per_group]
        merged.append(_merge(rows, begin))
        begin = merged[-1].last_epoch
    return merged


def _merge(rows: Sequence[Event], first_epoch: float) -> Interval:
    return Interval(
        first_epoch=first_epoch,
        last_epoch=rows[-1]["epoch"],
        loss=_mean(rows, "loss"),
        top1=_mean(rows, "top1"),
        learning_rate=_mean(rows, "learning_rate"),
        images_per_second=_mean(rows, "images_per_second"),
        phase_seconds=_sum_phases(rows),
    )


def _mean(rows: Sequence[Event], field: str) -> float:
    values = [row[field] for row in rows if row[field] is not None]
    return statistics.fmean(values) if values else math.nan


def _sum_phases(rows: Sequence[Event]) -> dict[str, float]:
    return {phase: sum(row["phase_seconds"].get(phase) or 0 for row in rows) for phase in PHASES}


def timeline(events: Sequence[Event]) -> list[TimelineRow]:
    """All but log intervals and evaluations; checkpoints in a row for one reason are one."""
    noted = [row for row in events if row["kind"] not in ("train", "eval")]
    groups = itertools.groupby(noted, key=_timeline_key)
    return [row for _, group in groups for row in _timeline_rows(list(group))]


def _timeline_key(event: Event) -> tuple[str, str]:
    return event["kind"], event.get("reason", "")


def _timeline_rows(events: Sequence[Event]) -> list[TimelineRow]:
    """Rows for neighbours of one kind."""
    if events[0]["kind"] == "checkpoint" and len(events) > 1:
        return [_timeline_row(events[-1], f"{len(events)} checkpoints", _describe_saves(events))]
    return [_timeline_row(event, *_describe(event)) for event in events]


def _timeline_row(event: Event, what: str, detail: str) -> TimelineRow:
    return TimelineRow(
        time=event["time"], step=event["step"], epoch=event["epoch"], what=what, detail=detail
    )


def _describe(event: Event) -> tuple[str, str]:
    """What to call the event, and a detail."""
    if event["kind"] == "run":
        group = f"ranks: {event['world_size']}, {event['device']}, {event['precision']}"
        if event["resumed_from"] is None:
            return "started", group
        return f"resumed from step {event['resumed_from']:,}", group
    if event["kind"] == "alarm":
        return "not learning", f"the loss of {event['loss']:.4f} is that of guessing"
    if event["kind"] == "signal":
        return "stop requested", f"by {event['source']}"
    if event["kind"] == "checkpoint":
        return "checkpoint", _describe_saves([event])
    return str(event["outcome"]), event.get("error") or ""


def _describe_saves(events: Sequence[Event]) -> str:
    seconds = statistics.median(event["seconds"] for event in events)
    megabytes = statistics.median(event["num_bytes"] for event in events) / 1e6
    span = "" if len(events) == 1 else f", from step {events[0]['step']:,} on"
    return f"{events[0]['reason']}, {megabytes:,.1f} MB in {seconds:.2f} s{span}"
