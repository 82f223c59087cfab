"""What a run has cost by its own events: the constants of a plan, and what waits must allow.

Only attempts that divide a step as the newest one does count: on as many ranks of the same kind.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pipeline.config.order import Measured, Surroundings, check_waits
from pipeline.config.schema import Config
from pipeline.config.timeouts import SHUTDOWN_SECONDS
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import attempts_of, history_of, of_training, of_type, read_rows
from pipeline.run.events import (
    CheckpointEvent,
    EndEvent,
    EvalEvent,
    Event,
    RunEvent,
    StartEvent,
    SubmitEvent,
    TrainEvent,
)
from pipeline.run.phase import PHASE_LABELS, Label


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCosts:
    """Seconds, but for the last; None: the events do not say.

    Medians, if it happened often; of restarts means, as a plan adds them up.
    """

    phases: dict[Label, float] = field(default_factory=dict)
    """Of a step of rank 0, by its steady intervals; empty if there are none."""
    save: float | None = None
    """From the last step before a save until it counts."""
    save_wait: float | None = None
    """How long steps wait for a save."""
    longest_save: float | None = None
    evaluation: float | None = None
    start: float | None = None
    """From the start of a job to its first step; what its first steps took longer is part of it."""
    restart: float | None = None
    """The same from a failure, of the ranks that torchrun or a supervisor starts instead."""
    kept: float | None = None
    """The share of failures that ranks survived in memory."""
    warm: float | None = None
    """Like `restart`, where they did."""
    best: float | None = None
    """The share of evaluations that were the best so far: after each the run saves."""
    run: RunEvent | None = None
    """Of the newest attempt."""

    @property
    def step(self) -> float | None:
        return sum(self.phases.values()) or None

    @property
    def for_waits(self) -> Measured:
        return Measured(
            step=self.step, evaluation=self.evaluation, save=self.longest_save, start=self.start
        )


def costs_of(rows: Iterable[Event]) -> RunCosts:
    """The costs that all `rows` of a run show, void attempts included."""
    rows = list(rows)
    run = next(reversed(of_type(rows, RunEvent)), None)
    if run is None:
        return RunCosts()
    alike = [each for each in attempts_of(rows) if _layouts(each) == {_layout(run)}]
    phases = _phases(alike)
    starts, restarts, warm = _starts(rows, run, sum(phases.values()))
    failures = len(restarts) + len(warm)
    evaluations, saves = _pauses(alike)
    return RunCosts(
        phases=phases,
        save=_median([counts for _, counts in saves]),
        save_wait=_median([wait for wait, _ in saves]),
        longest_save=max((counts for _, counts in saves), default=None),
        evaluation=_median(evaluations),
        start=_median(starts),
        restart=_mean(restarts),
        kept=len(warm) / failures if failures else None,
        warm=_mean(warm),
        best=_share_of_best(rows),
        run=run,
    )


def check_run(config: Config, run: RunDirectory, around: Surroundings) -> list[str]:
    """`check_waits` of a run that may have begun: by what it has measured so far."""
    return check_waits(config, around, costs_of(read_rows(run.events)).for_waits)


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _layout(run: RunEvent) -> tuple[str, int, int]:
    """What the time of a step depends on, and may change from attempt to attempt."""
    return run.device, run.world_size, run.accumulation_steps


def _layouts(attempt: Sequence[Event]) -> set[tuple[str, int, int]]:
    return {_layout(row) for row in of_type(attempt, RunEvent)}


def _share_of_best(rows: Sequence[Event]) -> float | None:
    found = of_type(of_training(history_of(rows)), EvalEvent)
    best = itertools.accumulate((row.top1 for row in found), max, initial=-1.0)
    return sum(a < b for a, b in itertools.pairwise(best)) / len(found) if found else None


def _phases(attempts: Sequence[Sequence[Event]]) -> dict[Label, float]:
    """Of a step; the first interval of each attempt, which is slow, only if there are no others."""
    pairs = [
        list(itertools.pairwise(row for row in attempt if isinstance(row, RunEvent | TrainEvent)))
        for attempt in attempts
    ]
    steady = [pair for each in pairs for pair in each[1:]] or [p for each in pairs for p in each]
    seconds, num_steps = dict.fromkeys(PHASE_LABELS, 0.0), 0
    for before, row in steady:
        if isinstance(row, TrainEvent):
            num_steps += row.step - before.step
            for label, value in row.phase_seconds.items():
                seconds[label] += value or 0.0
    return {label: value / num_steps for label, value in seconds.items()} if num_steps else {}


def _pauses(
    attempts: Sequence[Sequence[Event]],
) -> tuple[list[float], list[tuple[float, float]]]:
    """What evaluations took; and saves: how long steps waited, and until they counted.

    With what surrounds what the rows have measured, if steps waited for all of it.
    """
    evaluations: list[float] = []
    saves: list[tuple[float, float]] = []
    for before, row in (pair for each in attempts for pair in itertools.pairwise(each)):
        is_next = isinstance(before, TrainEvent | EvalEvent) and before.step == row.step
        gap = row.time - before.time if is_next else 0.0
        match row:
            case EvalEvent():
                evaluations.append(max(row.seconds, gap))
            case CheckpointEvent(waited_seconds=None) if row.step < before.step:
                # Written in the background, and waited for in the end.
                saves.append((min(row.seconds, row.time - before.time), row.seconds))
            case CheckpointEvent(waited_seconds=None):
                saves.append((max(row.seconds, gap),) * 2)
            case CheckpointEvent(waited_seconds=float(wait)):
                saves.append((wait, wait + row.seconds))
            case _:
                pass
    return evaluations, saves


def _starts(
    rows: Sequence[Event], alike: RunEvent, step_seconds: float
) -> tuple[list[float], list[float], list[float]]:
    """Seconds until the first step: of jobs, and of what was started at once after a failure.

    The last are those where ranks had the state in memory. A later start is that of a job, whose
    wait for a person or in a queue is no cost.
    """
    starts: list[float] = []
    restarts: list[float] = []
    warm: list[float] = []
    begin: float | None = None
    failed: float | None = None
    stood: float | None = None
    took, run, done = starts, alike, 0
    for row in rows:
        match row:
            case SubmitEvent():
                failed = None
            case StartEvent():
                begin, took = row.began, starts
                if failed is not None:
                    last = max(failed, min(row.began, row.heard or failed))
                    if row.began - last <= SHUTDOWN_SECONDS:  # what torchrun waits at most
                        begin, took = last if stood is None else failed - stood, restarts
            case RunEvent():
                if failed is not None and begin is not None and row.kept_by is not None:
                    # It goes on with all steps that were done: it is known when that was.
                    begin = failed + step_seconds * (row.step - done) - (stood or 0.0)
                failed, run, done = row.time if failed is not None else None, row, row.step
                if row.kept_by is not None and took is restarts:
                    took = warm
            case EvalEvent(by="evaluate"):
                pass
            case EndEvent(outcome="failed"):
                # Ranks that hang do nothing for a time before they are ended.
                worked = step_seconds * (row.step - done)
                stood = 0.0 if failed is None else max(0.0, row.time - failed - worked)
                failed, begin, done = row.time, None, row.step
            case EndEvent():
                failed = begin = None
            case TrainEvent():
                if begin is not None and _layout(run) == _layout(alike):
                    steps = step_seconds * (row.step - run.step)
                    took.append(max(0.0, row.time - steps - begin))
                failed, begin, done, stood = row.time, None, row.step, None
            case _:
                failed, done = row.time if failed is not None else None, row.step
    return starts, restarts, warm
