"""The table of what happened in a run besides training: pure functions."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple, assert_never

from pipeline.report.marks import rate_drops
from pipeline.run.event_log import of_type
from pipeline.run.events import (
    CheckpointEvent,
    DamagedImage,
    EndEvent,
    EvalEvent,
    Event,
    NotLearning,
    ReplicasDiffer,
    RunEvent,
    SignalEvent,
    StartEvent,
    Straggler,
    SubmitEvent,
    TrainEvent,
)
from pipeline.run.phase import PHASE_LABELS

_MAX_ALIKE = 3
"""Damaged images in a row that are shown; more are only counted."""


class TimelineRow(NamedTuple):
    """One thing that happened, or several of a kind in a row as one, at the time of `event`."""

    event: Event
    what: str
    detail: str


def timeline(rows: Sequence[Event]) -> list[TimelineRow]:
    """All but the evaluations of training, also in void attempts.

    Of log intervals only those in which the learning rate dropped. Several checkpoints in a row
    with one reason share a row.
    """
    drops = {row.step for row in rate_drops(rows)}
    noted = [
        row
        for row in rows
        if (not isinstance(row, TrainEvent) or row.step in drops)
        and not (isinstance(row, EvalEvent) and row.by == "train")
    ]
    groups = itertools.groupby(noted, key=lambda row: (type(row), getattr(row, "reason", None)))
    return [row for _, group in groups for row in _rows_of(list(group))]


def _rows_of(events: Sequence[Event]) -> Iterator[TimelineRow]:
    """Rows for neighbours of one kind and reason."""
    if len(saves := of_type(events, CheckpointEvent)) > 1:
        yield TimelineRow(saves[-1], f"{len(saves)} checkpoints", _describe_saves(saves))
        return
    is_damage = isinstance(events[0], DamagedImage)
    shown = events[:_MAX_ALIKE] if is_damage and len(events) > _MAX_ALIKE + 1 else events
    for event in shown:
        yield TimelineRow(event, *_describe(event))
    if more := len(events) - len(shown):
        yield TimelineRow(events[-1], f"{more} more damaged images", "they are in events.jsonl")


def _describe(event: Event) -> tuple[str, str]:
    """What to call the event, and a detail."""
    match event:
        case SubmitEvent():
            return "submitted", event.to if event.job is None else f"{event.to}: job {event.job}"
        case StartEvent():
            return "starting", ""
        case RunEvent():
            group = f"ranks: {event.world_size}, {event.device}, {event.precision}"
            if event.forked_from is not None:
                return "forked", f"from {event.forked_from}; {group}"
            if event.resumed_from is None:
                return "started", group
            return f"resumed from step {event.resumed_from:,}", group
        case NotLearning():
            loss = f"{event.loss:.4f}" if math.isfinite(event.loss) else "not a number"
            return "not learning", f"the loss of {loss} is that of guessing"
        case DamagedImage():
            sample = "" if event.sample is None else f", sample {event.sample:,} of train"
            return "damaged image", f"rank {event.rank}{sample}: {event.what}"
        case Straggler():
            return "straggler", _describe_straggler(event)
        case ReplicasDiffer():
            return "replicas differ", f"{event.tensor}: {event.what}"
        case SignalEvent():
            return "stop requested", f"by {event.source}"
        case CheckpointEvent():
            return "checkpoint", _describe_saves([event])
        case EvalEvent():
            return "evaluated", _describe_evaluation(event)
        case EndEvent():
            return event.outcome, event.error or ""
        case TrainEvent():
            return "learning rate lowered", f"to {event.learning_rate:.4g}"
    assert_never(event)


def _describe_straggler(event: Straggler) -> str:
    where = "" if event.phase is None else f" in {PHASE_LABELS[event.phase]}"
    match event.slow:
        case "rank":
            who = f"rank {event.rank} on {event.host}"
        case "loader":
            who = "the loader: the delay wanders from rank to rank"
        case "unattributed":
            who = "unattributed"
        case unknown:
            assert_never(unknown)
    return f"{who}{where}, {event.lag_seconds:.3g} s a step"


def _describe_evaluation(event: EvalEvent) -> str:
    """An evaluation by `pipeline.evaluate`."""
    views = "" if event.views in (None, 1) else f", {event.views} views"
    top5 = "" if event.top5 is None else f", top-5 {event.top5:.2%}"
    return (
        f"{event.split} of {event.shard_set}{views}: top-1 {event.top1:.2%}{top5} "
        f"of {event.seen:,} images"
    )


def _describe_saves(events: Sequence[CheckpointEvent]) -> str:
    seconds = statistics.median(event.seconds for event in events)
    megabytes = statistics.median(event.num_bytes for event in events) / 1e6
    span = "" if len(events) == 1 else f", from step {events[0].step:,} on"
    return f"{events[0].reason}, {megabytes:,.1f} MB in {seconds:.2f} s{span}"
