"""Reports what happens in a run: to the console, to `events.jsonl` and to Prometheus.

Longer than 250 lines: each kind of news goes to all three in one method.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from pipeline.config.model import ranks_per_replica
from pipeline.config.schema import Config
from pipeline.data.open import BatchPlan, Damage
from pipeline.metrics.job import JobMetrics
from pipeline.ranks.failure import RankFailure
from pipeline.run.console import Console, counted
from pipeline.run.directory import RunDirectory
from pipeline.run.ending import EndOutcome, StopSource
from pipeline.run.event_log import EventLog, count_resumes, history_of, read_rows
from pipeline.run.events import (
    CheckpointEvent,
    CheckpointReason,
    DamagedImage,
    EndEvent,
    EvalEvent,
    Event,
    NotLearning,
    ReplicasDiffer,
    RunEvent,
    SignalEvent,
    Straggler,
    TrainEvent,
)
from pipeline.train.due import Eta
from pipeline.train.evaluation import evaluation_line
from pipeline.train.progress import Progress
from pipeline.train.stragglers import Delay, sentence_of_delay

_SILENCE_SECONDS = 60.0
"""Between two lines about slow ranks."""

_MOST_UNWRITTEN = 10_000
"""Rows that wait for a disk that takes none: of more the oldest are lost."""

_log = logging.getLogger(__name__)


class Journal:
    """One verb for each thing that happens; rows wait for a full disk, and the run never does."""

    def __init__(
        self, events: Path, console: Console, metrics: JobMetrics, plan: BatchPlan, eta: Eta
    ) -> None:
        self.console = console
        rows = list(read_rows(events))
        self._num_resumes = count_resumes(rows)
        self._history = history_of(rows)
        self._events = EventLog(events)
        self._unwritten: deque[Event] = deque(maxlen=_MOST_UNWRITTEN)
        self._metrics = metrics
        self._plan = plan
        self._eta = eta
        self._last_step = 0
        self._saving_seconds = 0.0
        """Of copies since the last log interval."""
        self._has_warned = False
        self._is_stuck = False
        self._silent_until = -math.inf

    @classmethod
    def of_rank(
        cls, rank: int, run: RunDirectory, metrics: JobMetrics, plan: BatchPlan, eta: Eta
    ) -> Self:
        """Only rank 0 reports; the journals of other ranks go nowhere."""
        if rank == 0:
            return cls(run.events, Console(sys.stdout), metrics, plan, eta)
        return cls(Path(os.devnull), Console(None), metrics, plan, eta)

    def started(
        self,
        progress: Progress,
        event: RunEvent,
        epochs: float,
        build: Mapping[str, str],
        run: Mapping[str, str],
    ) -> None:
        """A process group starts; see `JobMetrics.started`."""
        self._last_step = progress.step
        self._metrics.started(event, epochs, build, run)
        if event.resumed_from is not None:
            self._metrics.resumed(
                self._num_resumes + 1,
                step=progress.step,
                history=[old for old in self._history if old.step <= progress.step],
                best_top1=progress.best_top1,
                best_top5=progress.best_top5,
            )
        self._history.clear()
        self._write(event)

    def count_step(self, step: int) -> None:
        """A step is done."""
        self._metrics.count_step(step, self._epoch(step))

    def trained(self, event: TrainEvent, loss_scale: float | None) -> None:
        """A log interval ended."""
        self._metrics.trained(event, loss_scale)
        num_steps, self._last_step = event.step - self._last_step, event.step
        num_samples = num_steps * self._plan.global_batch_size
        self._eta.step.add(num_samples / event.images_per_second, num_steps)
        left, target = self._eta.seconds_after(event.step), self._eta.target_steps
        self.console.line(train_line(event, target_steps=target, eta_seconds=left))
        saving, self._saving_seconds = self._saving_seconds, 0.0
        self._write(dataclasses.replace(event, saving_seconds=saving or None))

    def record_learning(self, step: int, loss: float, *, is_stuck: bool) -> None:
        """Whether the network still guesses, long after it should have begun to learn."""
        self._metrics.record_learning(is_stuck=is_stuck)
        if is_stuck and not self._is_stuck:
            self.console.line(
                f"warning: not learning: after {step:,} steps the loss of {loss:.4f} is still that "
                "of guessing; try another learning rate, initialisation or seed"
            )
            self._write(NotLearning(step=step, epoch=self._epoch(step), loss=loss))
        self._is_stuck = is_stuck

    def record_damages(self, step: int, rank: int, damages: Sequence[Damage]) -> None:
        """Other images replace damaged ones; `rank` has printed warnings itself."""
        for damage in damages:
            event = DamagedImage(
                step=step,
                epoch=self._epoch(step),
                rank=rank,
                sample=damage.sample,
                shard=damage.shard,
                what=damage.what,
            )
            self._write(event)

    def record_delay(self, step: int, delay: Delay | None, hosts: Sequence[str]) -> None:
        """What holds up the ranks, whose `hosts` are in order; said once a minute at most."""
        self._metrics.record_delay(None if delay is None else delay.slow)
        now = time.monotonic()
        if delay is None or now < self._silent_until:
            return
        self._silent_until = now + _SILENCE_SECONDS
        host = None if delay.rank is None else hosts[delay.rank]
        self.console.line(f"warning: {sentence_of_delay(delay, host)}")
        event = Straggler(
            step=step,
            epoch=self._epoch(step),
            slow=delay.slow,
            rank=delay.rank,
            host=host,
            phase=delay.phase,
            lag_seconds=delay.lag_seconds,
        )
        self._write(event)

    def compared_replicas(self) -> None:
        self._metrics.compared_replicas()

    def replicas_differ(self, event: ReplicasDiffer) -> None:
        self.console.line(f"warning: the replicas differ in {event.tensor}: {event.what}")
        self._write(event)

    def evaluated(self, event: EvalEvent) -> None:
        self._eta.evaluation.add(event.seconds)
        self._metrics.evaluated(event)
        self.console.line(evaluation_line(event))
        self._write(event)

    def copied_state(self, seconds: float) -> None:
        """The steps stood still for a copy of the state, which is written from now on."""
        self._saving_seconds += seconds

    def checkpointed(self, event: CheckpointEvent, waited_seconds: float) -> None:
        """A checkpoint is there; the steps waited for it."""
        self._eta.save.add(waited_seconds)
        self._metrics.checkpointed(event, waited_seconds)
        size, seconds = f"{event.num_bytes / 1e6:.1f} MB", f"{event.seconds:.2f} s"
        aside = f"; steps waited {waited_seconds:.2f} s"
        self.console.line(
            f"saved {event.path} ({size} in {seconds}{aside * (event.waited_seconds is not None)})"
        )
        self._write(event)

    def checkpoint_failed(self, reason: CheckpointReason, waited_seconds: float) -> None:
        self._metrics.checkpoint_failed(reason, waited_seconds)

    def no_checkpoint(self, error: str) -> None:
        self.console.line(f"warning: no checkpoint saved: {error}")

    def stop_requested(self, step: int, source: StopSource) -> None:
        self._metrics.stop_requested()
        self.console.line(f"stopping at step {step:,}, asked by {source}")
        self._write(SignalEvent(step=step, epoch=self._epoch(step), source=source))

    def ended(self, step: int, outcome: EndOutcome, failure: RankFailure | None = None) -> None:
        """The process group leaves."""
        self._metrics.ended()
        epoch = self._epoch(step)
        error, cause = (str(failure), failure.cause) if failure else (None, None)
        self._write(EndEvent(step=step, epoch=epoch, outcome=outcome, error=error, cause=cause))
        with contextlib.suppress(OSError):
            self._events.close()

    def _epoch(self, step: int) -> float:
        return step / self._plan.steps_per_epoch

    def _write(self, event: Event) -> None:
        self._unwritten.append(event)
        try:
            while self._unwritten:
                self._events.write(self._unwritten[0])
                self._unwritten.popleft()
        except OSError as error:
            if not self._has_warned:
                _log.warning("cannot write events: %s; training goes on", error.strerror)
            self._has_warned = True


def resolved_table(config: Config, plan: BatchPlan, event: RunEvent) -> dict[str, str]:
    """The arithmetic of a run, for its first lines."""
    rounds = "" if plan.accumulation_steps == 1 else f" × {plan.accumulation_steps} accumulated"
    if plan.dropped_samples:
        rest = f"{plan.dropped_samples:,} left out in each, others every time"
    elif plan.num_samples % plan.global_batch_size:
        rest = f"none left out, the last batch has {plan.num_samples % plan.global_batch_size:,}"
    else:
        rest = "none left out"
    is_split = ranks_per_replica(config.model.columns) > 1
    layout = ", one column each" if is_split else ""
    holders = counted(plan.num_replicas, "replica" if is_split else "rank")
    schedule = config.schedule
    warmup = f" after {schedule.warmup_ratio:.0%} warm-up" if schedule.warmup_ratio else ""
    return {
        "ranks": f"{event.world_size} on {event.device}, {event.precision}{layout}",
        "global batch": f"{plan.global_batch_size:,} = {holders} × "
        f"{plan.local_batch_size:,} local{rounds}",
        "epochs": f"{config.epochs:g} of {plan.steps_per_epoch:,} steps, "
        f"{event.target_steps:,} in all",
        "samples": f"{plan.num_samples:,} train ({rest}), {event.num_val_samples:,} val",
        "optimizer": f"{config.optim.name}, learning rate {config.optim.learning_rate:g} at its "
        f"peak, {schedule.name}{warmup}",
    }


def train_line(event: TrainEvent, *, target_steps: int, eta_seconds: float) -> str:
    """One log interval."""
    width = len(f"{target_steps:,}")
    return (
        f"step {event.step:>{width},}/{target_steps:,}  epoch {event.epoch:6.2f}  "
        f"loss {event.loss:.4f}  top-1 {event.top1:6.1%}  "
        f"{event.images_per_second:,.0f} images/s  "
        f"data wait {event.data_wait_ratio:.1%}  ETA {clock_time(eta_seconds)}"
    )


def clock_time(seconds: float) -> str:
    """h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
