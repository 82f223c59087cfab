"""The story of a run so far, which grows row by row: what a program has to show of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from data_prep.shard_set.files import as_text
from pipeline.follow.points import Point, points_of
from pipeline.run.directory import RunDirectory
from pipeline.run.ending import EndOutcome
from pipeline.run.events import EndEvent, Event, RunEvent
from pipeline.run.settings import read_saved

_OF_SETTINGS = ("recipe", "manifest_sha256", "forked_from", "initialized_from", "config")
"""What `config.json` has besides versions and hardware."""


Outcome = Literal["running"] | EndOutcome
"""A run that was killed runs until it goes on, as its events cannot say that it was."""


class Edit(NamedTuple):
    """What a row changes: first forget the points at `forget_from` and later steps, then add."""

    forget_from: int | None
    points: list[Point]


class Story:
    """The newest attempt wins: what a killed one did after the step that is resumed is void."""

    def __init__(self, run: RunDirectory, began: float) -> None:
        self.run = run
        self.name = as_text(run.name)
        self.began = began
        """Time of the first row in Unix seconds: tells this run from others of the same path."""
        self.outcome: Outcome = "running"
        self.ended: float | None = None
        """When it ended, in Unix seconds; None while it runs."""
        self.parameters: Mapping[str, bool | int | float | str] = {}
        """The fields of its configuration, such as `data.shards`."""
        self.points: dict[tuple[str, int], Point] = {}
        """One for each tag and step. The numbers of the newest row, the texts of all."""
        self._newest: dict[str, int] = {}
        """The highest step of each tag."""
        self.edits: list[Edit] = []
        """One for each row: whoever makes them all has exactly `points`."""

    def add(self, row: Event) -> None:
        """Add the next row. Raises `ValueError` if a run begins and its `config.json` is not good.

        The edits suit both readers of TensorBoard. One forgets what all tags have from a step on
        when it is told to; the other forgets what one tag has from a step on when it reads that
        step again. So an edit goes back to a step from which all tags it concerns are read again.
        """
        forget_from: list[int] = []
        if isinstance(row, RunEvent):
            self.outcome, self.ended = "running", None
            self.parameters = dict(_leaves("", _settings(self.run)))
            forget_from = self._forget_after(row.resumed_from or 0)
        if isinstance(row, EndEvent):
            self.outcome, self.ended = row.outcome, row.time
        added = []
        for point in points_of(row):
            before = self.points.get((point.tag, point.step))
            if before is not None and are_same(before.value, point.value):
                continue
            if before is not None and isinstance(before.value, str):
                point = point._replace(value=f"{before.value}\n{point.value}")
            newest = self._newest.get(point.tag, -1)
            if point.step <= newest:  # as when an older checkpoint is evaluated
                forget_from.append(point.step)
            self._newest[point.tag] = max(point.step, newest)
            self.points[point.tag, point.step] = point
            added.append(point)
        if not forget_from:
            self.edits.append(Edit(None, added))
            return
        first = min(forget_from)
        kept = (point for point in self.points.values() if point.step >= first)
        self.edits.append(Edit(first, sorted(kept, key=lambda point: point.step)))

    def numbers(self) -> dict[tuple[str, int], Point]:
        """Those of the points that are no texts."""
        return {key: point for key, point in self.points.items() if _is_number(point)}

    def by_step(self) -> list[tuple[int, float, dict[str, float]]]:
        """The numbers of each step, by tag, with the step and the time of the oldest."""
        steps: dict[int, tuple[float, dict[str, float]]] = {}
        for point in self.numbers().values():
            time, values = steps.get(point.step, (point.time, {}))
            values[point.tag] = float(point.value)
            steps[point.step] = min(time, point.time), values
        return [(step, *steps[step]) for step in sorted(steps)]

    def identity(self) -> str:
        """What no other run has, in letters and digits."""
        return hashlib.sha256(os.fsencode(f"{self.run.path.resolve()} {self.began!r}")).hexdigest()

    def texts(self) -> dict[str, str]:
        """The newest text of each tag."""
        texts = [point for point in self.points.values() if not _is_number(point)]
        return {
            point.tag: str(point.value) for point in sorted(texts, key=lambda point: point.step)
        }

    def _forget_after(self, step: int) -> list[int]:
        """Drop all points after `step`; returns where their tags are to be written again from."""
        void = {tag for tag, newest in self._newest.items() if newest > step}
        if not void:
            return []
        self.points = {key: point for key, point in self.points.items() if point.step <= step}
        self._newest = {}
        for tag, kept in self.points:
            self._newest[tag] = max(kept, self._newest.get(tag, -1))
        return [self._newest.get(tag, step + 1) for tag in void]


def are_same(one: float | str, other: float | str) -> bool:
    """Whether two values are equal; NaN is itself."""
    return one == other or (one != one and other != other)


def _is_number(point: Point) -> bool:
    return isinstance(point.value, float)


def _settings(run: RunDirectory) -> Mapping[str, Any]:
    saved = read_saved(run)
    return {name: saved[name] for name in _OF_SETTINGS if saved.get(name) is not None}


def _leaves(name: str, value: Any) -> Iterator[tuple[str, bool | int | float | str]]:
    """The fields below `value`, by their names on the command line; others as JSON."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            inside = name.removeprefix("config")
            yield from _leaves(f"{inside}.{key}" if inside else key, part)
    elif isinstance(value, str):
        yield name, as_text(value)
    elif isinstance(value, bool | int | float):
        yield name, value
    else:
        yield name, json.dumps(value)
