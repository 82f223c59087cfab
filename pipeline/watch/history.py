"""What the events of one run add up to, in little memory however long it is."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence

from pipeline.report.marks import MarkKind, find_marks
from pipeline.report.timeline import timeline
from pipeline.run.event_log import history_of, of_training, own_evaluations
from pipeline.run.events import Alarm, CheckpointEvent, EvalEvent, Event, RunEvent, TrainEvent
from pipeline.run.ledger import LedgerBuilder

_MAX_POINTS = 240
_MAX_NOTED = 200
"""Alarms, and things that happened, that are kept: the newest."""

Point = tuple[float, ...]
"""A step, its epoch, and values; NaN is one that is not there."""


class Curve:
    """Points in the order of their steps. Where there are too many, neighbours become one."""

    def __init__(self) -> None:
        self._points: list[Point] = []
        self._newest: list[Point] = []
        """Fewer than become one point."""
        self._rows_per_point = 1

    def add(self, *row: float) -> None:
        self._newest.append(row)
        if len(self._newest) == self._rows_per_point:
            self._points.append(_merged(self._newest))
            self._newest = []
        if len(self._points) == 2 * _MAX_POINTS:
            pairs = zip(self._points[::2], self._points[1::2], strict=True)
            self._points = [_merged(pair) for pair in pairs]
            self._rows_per_point *= 2

    def drop_after(self, step: int) -> None:
        """Leave out what is void since the run went on from `step`."""
        self._points = [point for point in self._points if point[0] <= step]
        self._newest = [point for point in self._newest if point[0] <= step]

    @property
    def points(self) -> list[Point]:
        """At most 480: as many as are seen in a curve."""
        return [*self._points, *([_merged(self._newest)] if self._newest else [])]


def _merged(points: Sequence[Point]) -> Point:
    """The last step and epoch, and the means of what is finite."""
    _, _, *columns = zip(*points, strict=True)
    finite = ([value for value in column if math.isfinite(value)] for column in columns)
    means = (statistics.fmean(values) if values else math.nan for values in finite)
    return *points[-1][:2], *means


class History:
    """All that is shown of a run's events; `add` takes every row, in its order."""

    def __init__(self) -> None:
        self.ledger = LedgerBuilder()
        self.start: RunEvent | None = None
        self.train: TrainEvent | None = None
        """The newest log interval."""
        self.trains = Curve()
        """Loss, top-1 and images a second of the log intervals."""
        self.evaluations: list[EvalEvent] = []
        self.saved: CheckpointEvent | None = None
        """The newest."""
        self.step = 0
        self.num_alarms = 0
        self._alarms: deque[Event] = deque(maxlen=_MAX_NOTED)
        self._valid_alarms: list[Event] = []
        """Those that no later attempt has made void."""
        self._noted: deque[Event] = deque(maxlen=_MAX_NOTED)
        """What is neither of these, nor above."""

    def add(self, row: Event) -> None:
        self.ledger.add(row)
        if of_training([row]) and not isinstance(row, CheckpointEvent):
            self.step = row.step
        self.evaluations += own_evaluations([row])
        if isinstance(row, RunEvent):
            self._go_on(row)
        if isinstance(row, TrainEvent):
            self.train = row
            self.trains.add(row.step, row.epoch, row.loss, row.top1, row.images_per_second)
        elif isinstance(row, CheckpointEvent):
            self.saved = row
        elif isinstance(row, Alarm):
            self.num_alarms += 1
            self._alarms.append(row)
            self._valid_alarms = [*self._valid_alarms[-_MAX_NOTED:], row]
        elif not isinstance(row, EvalEvent) or row.by == "evaluate":
            self._noted.append(row)

    def _go_on(self, start: RunEvent) -> None:
        step = start.resumed_from or 0
        self.start = start
        self.trains.drop_after(step)
        self.evaluations = [row for row in self.evaluations if row.step <= step]
        self._valid_alarms = [row for row in self._valid_alarms if row.step <= step]
        if self.train is not None and self.train.step > step:
            self.train = None

    @property
    def evaluation_points(self) -> list[Point]:
        """Loss, top-1 and top-5 of the evaluations that training made."""
        curve = Curve()
        for row in self.evaluations:
            if row.by == "train":
                top5 = math.nan if row.top5 is None else row.top5
                curve.add(row.step, row.epoch, row.loss, row.top1, top5)
        return curve.points

    @property
    def marks(self) -> dict[MarkKind, list[float]]:
        """What is marked on the curves, at which epochs."""
        return find_marks([*history_of(self._noted), *self._valid_alarms])

    def told(self, *, alarms: bool) -> list[dict[str, object]]:
        """The alarms, or what else happened, newest first."""
        return [
            {"time": row.event.time, "step": row.event.step, "what": row.what, "text": row.detail}
            for row in reversed(timeline([*(self._alarms if alarms else self._noted)]))
        ]
