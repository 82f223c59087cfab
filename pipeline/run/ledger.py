"""Where the hours of a run went: each second since it was first submitted in exactly one class.

Derived from the rows of `RUN/events.jsonl` alone, over all attempts. Each row says what the time
since the row before was spent on; a `run` row that resumes from step k says that what was done
after k is lost. So the classes sum to wall clock whatever is missing. A clock that goes backwards
stands still here. The seconds since the newest row are provisional until the next one is there.
Longer than 250 lines: what each row means for the seconds before it is one state machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, assert_never

from pipeline.run.ending import StopSource
from pipeline.run.events import (
    Alarm,
    CheckpointEvent,
    EndEvent,
    EvalEvent,
    Event,
    RunEvent,
    SignalEvent,
    StartEvent,
    SubmitEvent,
    TrainEvent,
)
from pipeline.run.phase import Label

SecondClass = Literal[
    "queued", "starting", "loading", "compiling", "steps", "data_wait", "rank_wait", "evaluation",
    "saving", "lost", "down", "stopping",
]  # fmt: skip

SECOND_CLASSES: Mapping[SecondClass, str] = {
    "queued": "waiting in a queue",
    "starting": "starting processes",
    "loading": "loading checkpoint and data",
    "compiling": "compiling",
    "steps": "steps of training",
    "data_wait": "waiting for data",
    "rank_wait": "waiting for other ranks",
    "evaluation": "evaluation",
    "saving": "saving checkpoints",
    "lost": "lost work",
    "down": "down between attempts",
    "stopping": "stopping",
}
"""The classes, and their names for people."""


WAITS: Mapping[Label, SecondClass] = {"data_wait": "data_wait", "sync_wait": "rank_wait"}
"""The phases of rank 0 that are no work; all others are `steps`."""

_ASKED_BY_A_PERSON = (StopSource.SIGINT, StopSource.SIGHUP, StopSource.STOP_FILE)

_State = Literal["starting", "loading", "steps", "stopping"]
"""What a process group is at since its newest row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """The classes of all seconds from `begin` to `end`, both in Unix seconds."""

    seconds: Mapping[SecondClass, float]
    """Of every class; they sum to `total_seconds`."""
    begin: float
    """When the run was submitted, or of one that nobody submitted its first event."""
    end: float
    is_queue_known: bool
    """Whether the time in a queue before the first attempt would be in the rows."""
    num_attempts: int
    num_preemptions: int
    """How often it was asked to stop as clusters do it: a person may, too, by `scancel`."""
    num_lost_steps: int
    """Logged steps that were done again."""

    @property
    def total_seconds(self) -> float:
        return self.end - self.begin

    @property
    def goodput(self) -> float:
        """The share of `steps`; 0 before the first second."""
        return self.seconds["steps"] / self.total_seconds if self.total_seconds else 0.0


class LedgerBuilder:
    """Takes the rows of a run one by one, void attempts included, in the order of the file."""

    def __init__(self) -> None:
        self._begin = self._cursor = math.nan
        """All seconds between these two have their class."""
        self._seconds: dict[SecondClass, float] = dict.fromkeys(SECOND_CLASSES, 0.0)
        self._work: list[tuple[int, int, Mapping[SecondClass, float]]] = []
        """What a resume may turn into lost work: up to which step, how many, and its seconds."""
        self._state: _State | None = None
        """None: no process group is there."""
        self._step = 0
        self._heard = -math.inf
        """When a row said nothing of the time before it, but that somebody lived."""
        self._submits: list[SubmitEvent] = []
        """Not answered by a process group yet."""
        self._is_queue_known = False
        self._num_attempts = self._num_preemptions = self._num_lost_steps = 0
        self._unlogged = 0.0
        """Seconds behind the newest log interval of an attempt that has failed."""

    def add(self, row: Event) -> None:
        """Take the next row."""
        if isinstance(row, EvalEvent) and row.by == "evaluate":
            return
        if math.isnan(self._begin):
            began = getattr(row, "began", None)
            self._begin = self._cursor = row.time if began is None else min(began, row.time)
            self._is_queue_known = isinstance(row, SubmitEvent) and row.to != "kubernetes"
        match row:
            case SubmitEvent():
                self._submits.append(row)
            case StartEvent():
                self._begin_attempt(row.began, row.heard)
                self._settle(row.time, "starting")
            case RunEvent():
                self._run(row)
            case TrainEvent():
                self._train(row)
            case EvalEvent():
                self._do(row, "evaluation")
            case CheckpointEvent() if row.waited_seconds is None:
                self._do(row, "saving")
            case CheckpointEvent():  # it was written in the background
                self._heard = max(self._heard, row.time)
            case SignalEvent():
                self._join(row.time)
                self._settle(row.time, "stopping")
                self._state = "stopping"
                self._num_preemptions += row.source not in _ASKED_BY_A_PERSON
            case EndEvent():
                self._end(row)
            case Alarm():
                self._heard = max(self._heard, row.time)
            case _:
                assert_never(row)

    def ledger(self, now: float | None = None, *, is_at_work: bool = True) -> Ledger | None:
        """The ledger up to the newest row; None without rows.

        It goes on to `now`, in Unix seconds, if the run is at work, or is waiting in a queue: rows
        alone do not say that a process group was killed.
        """
        if math.isnan(self._begin):
            return None
        seconds, end = dict(self._seconds), self._cursor
        for until, name in () if now is None else self._tail(now, is_at_work):
            seconds[name] += max(0.0, until - end)
            end = max(end, until)
        return Ledger(
            # What was taken back may leave a hair below zero.
            seconds={name: max(0.0, value) for name, value in seconds.items()},
            begin=self._begin,
            end=end,
            is_queue_known=self._is_queue_known,
            num_attempts=self._num_attempts,
            num_preemptions=self._num_preemptions,
            num_lost_steps=self._num_lost_steps,
        )

    def _tail(self, now: float, is_at_work: bool) -> list[tuple[float, SecondClass]]:
        """What is since the newest row."""
        if is_at_work and self._state is not None:
            return [(now, self._state)]
        may_begin = any(is_at_work or row.to == "slurm" for row in self._submits)
        return self._waiting(now) if may_begin else []

    def _settle(self, until: float, name: SecondClass) -> None:
        """The seconds up to `until` that have no class yet are of this one."""
        self._seconds[name] += max(0.0, until - self._cursor)
        self._cursor = max(self._cursor, until)

    def _begin_attempt(self, began: float, heard: float | None = None) -> None:
        """A process group is there, since `began`; one that had not ended was killed."""
        self._num_attempts += 1
        if self._state is not None:
            last = max(self._heard, -math.inf if heard is None else heard)
            self._waste(min(last, began))
        for until, name in self._waiting(began):
            self._settle(until, name)
        self._submits.clear()
        self._state, self._heard = "starting", -math.inf

    def _waiting(self, until: float) -> list[tuple[float, SecondClass]]:
        """The classes of the time before a process group, each with its end.

        Of jobs in a queue the first counts. Of those that begin at once only the last one can have
        begun; and while a process group was there, none.
        """
        queued = [row.time for row in self._submits if row.to == "slurm"]
        at_once = [row.time for row in self._submits[-1:] if row.to != "slurm"]
        begun = min([until, *(when for when in at_once if when >= self._cursor)])
        first = min([begun, *queued])
        return [(first, "down"), (begun, "queued"), (until, "starting")]

    def _join(self, began: float) -> None:
        """Begin an attempt whose first rows are lost."""
        if self._state is None:
            self._begin_attempt(began)

    def _run(self, row: RunEvent) -> None:
        compiled = row.time - (row.compiling_seconds or 0.0)
        loaded = compiled - (row.loading_seconds or 0.0)
        if self._state != "starting":
            self._begin_attempt(loaded)
        self._settle(min(loaded, row.time), "starting")
        self._settle(min(compiled, row.time), "loading")
        self._settle(row.time, "compiling")
        self._keep_unlogged(row.step)
        self._state, self._step = "loading", row.step
        # What was done after that will be done again; see `event_log.history_of`.
        for step, num_steps, seconds in self._work:
            if step > (row.resumed_from or 0):
                self._num_lost_steps += num_steps
                for name, value in seconds.items():
                    self._seconds[name] -= value
                    self._seconds["lost"] += value
        self._work = [work for work in self._work if work[0] <= (row.resumed_from or 0)]

    def _waste(self, until: float) -> None:
        """The process group has failed, and nothing came of what it did since its newest row."""
        if self._state is not None:
            before = self._seconds["lost"]
            self._settle(until, "lost" if self._state in ("loading", "steps") else self._state)
            self._unlogged = self._seconds["lost"] - before

    def _keep_unlogged(self, step: int) -> None:
        """Steps up to `step` that nobody has logged are done: ranks have kept them in memory."""
        num_steps, unlogged, self._unlogged = step - self._step, self._unlogged, 0.0
        logged = next((work for work in reversed(self._work) if work[1]), None)
        if num_steps <= 0 or logged is None or logged[0] != self._step:
            return
        _, number, seconds = logged
        total = sum(seconds.values()) * num_steps / number
        share = num_steps / number * min(1.0, unlogged / total) if total else 0.0
        kept = {name: value * share for name, value in seconds.items()}
        self._work.append((step, num_steps, kept))
        self._seconds["lost"] -= sum(kept.values())
        for name, value in kept.items():
            self._seconds[name] += value

    def _add_work(self, row: Event, num_steps: int, seconds: Mapping[SecondClass, float]) -> None:
        self._work.append((row.step, num_steps, seconds))
        for name, value in seconds.items():
            self._seconds[name] += value
        self._cursor = max(self._cursor, row.time)

    def _train(self, row: TrainEvent) -> None:
        """A log interval, divided as rank 0's time was; before the first one there was loading."""
        parts: dict[SecondClass, float] = {"steps": 0.0}
        for label, value in row.phase_seconds.items():
            name = WAITS.get(label, "steps")
            parts[name] = parts.get(name, 0.0) + max(0.0, value or 0.0)
        copying, total = max(0.0, row.saving_seconds or 0.0), sum(parts.values())
        self._join(row.time - total - copying)
        if self._state in ("starting", "loading"):
            self._settle(row.time - total - copying, "loading")
        gap = max(0.0, row.time - self._cursor)
        if copying:  # for a checkpoint of the step before these
            saving = gap * copying / (total + copying)
            self._work.append((self._step, 0, {"saving": saving}))
            self._seconds["saving"] += saving
            gap -= saving
        parts = {name: value * gap / total if total else 0.0 for name, value in parts.items()}
        parts["steps"] += gap - sum(parts.values())
        self._add_work(row, max(0, row.step - self._step), parts)
        self._state, self._step = "steps", row.step

    def _do(self, row: EvalEvent | CheckpointEvent, name: SecondClass) -> None:
        """All since the row before was for this."""
        self._join(row.time - row.seconds)
        self._add_work(row, 0, {name: max(0.0, row.time - self._cursor)})
        if self._state != "stopping":
            self._state = "steps"

    def _end(self, row: EndEvent) -> None:
        if row.began is not None:  # it failed before its `start` row
            self._begin_attempt(row.began)
        if self._state is not None:
            if row.outcome == "failed":
                self._waste(row.time)
            self._settle(row.time, "stopping")
        elif row.outcome == "failed":  # before its `run` row, in an older version
            self._num_attempts += 1
            self._settle(row.time, "down")
        self._state = None


def ledger_of(
    rows: Iterable[Event], now: float | None = None, *, is_at_work: bool = True
) -> Ledger | None:
    """Of all rows of a run, void attempts included; see `LedgerBuilder.ledger`."""
    builder = LedgerBuilder()
    for row in rows:
        builder.add(row)
    return builder.ledger(now, is_at_work=is_at_work)
