"""What other programs show of a run: numbers and texts at steps, from the rows of its events."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, assert_never

from data_prep.shard_set.files import as_text
from pipeline.run.event_rows import row_of
from pipeline.run.events import (
    Alarm,
    CheckpointEvent,
    EndEvent,
    EvalEvent,
    Event,
    Row,
    RunEvent,
    SignalEvent,
    StartEvent,
    SubmitEvent,
    TrainEvent,
)

_OF_EVERY_ROW = {"kind", "reason", *(field.name for field in dataclasses.fields(Row))}

_PLACE = {"step", "time"}
"""Where a point is, and not what it is."""

_NO_TAG = re.compile(r"[^\w. -]|^\.+", re.ASCII)
"""What some programs take in no part of a name."""

_LONGEST_WORD = 90
"""Two are in a name, of which MLflow takes 250 characters; the title of a shard set has 80."""


class Point(NamedTuple):
    """One value of one curve, or a text."""

    tag: str
    step: int
    value: float | str
    time: float
    """Unix seconds."""


def points_of(event: Event) -> list[Point]:
    """Every number of a log interval, evaluation or checkpoint; of other rows a text, or nothing.

    A number that is null is left out. Tags are words with `/` between them, as `train/loss`.
    """
    match event:
        case TrainEvent() | CheckpointEvent():
            values: Mapping[str, Any] = dict(_numbers(event.kind, event))
        case EvalEvent():
            values = dict(_numbers(_tag_of(event), event))
        case RunEvent() | SignalEvent() | EndEvent():
            values = {"run": _describe(event)}
        case Alarm():
            values = {f"alarm/{event.reason}": _describe(event)}
        case SubmitEvent() | StartEvent():
            values = {}
        case unknown:
            assert_never(unknown)
    return [Point(tag, event.step, value, event.time) for tag, value in values.items()]


def _numbers(prefix: str, event: Event) -> Iterator[tuple[str, float]]:
    """The row's own numbers, and its epoch: a curve of another tag can be drawn over it."""
    for field in dataclasses.fields(event):
        value = getattr(event, field.name)
        parts = value if isinstance(value, Mapping) else {"": value}
        for name, part in parts.items():
            is_number = isinstance(part, int | float) and not isinstance(part, bool)
            if is_number and field.name not in _PLACE:
                yield "/".join(filter(None, (prefix, field.name, name))), float(part)


def _tag_of(event: EvalEvent) -> str:
    """`val` of evaluations during training; others say by what was evaluated, and how."""
    if event.by == "train":
        return _word(event.split)
    words = ["evaluate", _word(event.split)]
    if event.views is not None:
        words.append(f"views {event.views}")
    if not event.own_shards:
        words.append(_word(f"{event.shard_set} {(event.manifest_sha256 or '')[:8]}"))
    return "/".join(words)


def _word(text: str) -> str:
    return _NO_TAG.sub("_", text.strip()[:_LONGEST_WORD].rstrip()) or "_"


def _describe(event: Event) -> str:
    row = {name: value for name, value in row_of(event).items() if name not in _OF_EVERY_ROW}
    fields = ", ".join(f"{name} {value}" for name, value in row.items() if value is not None)
    return as_text(f"{event.kind}: {fields}")
