"""What is marked on the curves of a run, and in words for who does not see them: pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pipeline.run.event_log import of_type
from pipeline.run.events import Alarm, Event, RunEvent, SignalEvent, TrainEvent

MarkKind = Literal["resumed", "stop requested", "learning rate lowered", "alarm"]

_MAX_IN_WORDS = 5
"""Epochs of a kind that a description names; the timeline has all."""


def find_marks(events: Sequence[Event]) -> dict[MarkKind, list[float]]:
    """The epochs of what is marked, by kind, rising; a kind that there is nothing of is left out.

    `events` are the one history: what a later attempt did again is on no curve.
    """
    found: dict[MarkKind, list[float]] = {
        "resumed": [row.epoch for row in of_type(events, RunEvent) if row.resumed_from is not None],
        "stop requested": [row.epoch for row in of_type(events, SignalEvent)],
        "learning rate lowered": [row.epoch for row in rate_drops(events)],
        "alarm": [row.epoch for row in of_type(events, Alarm)],
    }
    return {kind: sorted({*epochs}) for kind, epochs in found.items() if epochs}


def rate_drops(events: Sequence[Event]) -> list[TrainEvent]:
    """The log intervals in which the learning rate left a stair downwards.

    On a stair it was the same twice: a rate that falls all the time has no drops.
    """
    rows = of_type(events, TrainEvent)
    rates = [row.learning_rate for row in rows]
    return [
        row
        for row, before, last, rate in zip(rows[2:], rates, rates[1:], rates[2:], strict=False)
        if rate < last == before
    ]


def describe_marks(marks: Mapping[MarkKind, Sequence[float]]) -> str:
    """For screen readers, such as 'resumed at epoch 4; alarm at epochs 2.5, 7'; '' without any."""
    return "; ".join(f"{kind} at {_in_words(epochs)}" for kind, epochs in marks.items())


def _in_words(epochs: Sequence[float]) -> str:
    shown = ", ".join(f"{round(epoch, 2):g}" for epoch in epochs[:_MAX_IN_WORDS])
    more = len(epochs) - _MAX_IN_WORDS
    return f"epoch{'s' * (len(epochs) > 1)} {shown}{f' and {more} more' if more > 0 else ''}"
