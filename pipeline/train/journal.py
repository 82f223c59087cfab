"""Tells what happens in a run: to the console, to `events.jsonl` and to Prometheus."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from prometheus_client import CollectorRegistry

from pipeline.data.open import BatchPlan, Damage
from pipeline.metrics.job import JobMetrics, RunFacts
from pipeline.run.console import Console
from pipeline.run.directory import RunDirectory
from pipeline.run.ending import EndOutcome, FailureCause, StopSource
from pipeline.run.event_log import EventLog, count_resumes, read_events
from pipeline.run.events import (
    CheckpointEvent,
    CheckpointReason,
    DamagedImage,
    EndEvent,
    Event,
    NotLearning,
    RunEvent,
    SignalEvent,
    TrainEvent,
)
from pipeline.train.eta import Eta
from pipeline.train.evaluation import Evaluation
from pipeline.train.lines import evaluation_line, train_line
from pipeline.train.progress import Progress

_log = logging.getLogger(__name__)


class Journal:
    """One verb for each thing that happens; a full disk costs rows of the log, never the run."""

    def __init__(
        self, events: Path, console: Console, metrics: JobMetrics, plan: BatchPlan, eta: Eta
    ) -> None:
        self.console = console
        self._num_resumes = count_resumes(events)
        self._history = read_events(events) if events.is_file() else []
        self._events = EventLog(events)
        self._metrics = metrics
        self._plan = plan
        self._eta = eta
        self._last_step = 0
        self._has_warned = False
        self._is_stuck = False

    @classmethod
    def of_rank(
        cls, rank: int, run: RunDirectory, registry: CollectorRegistry, plan: BatchPlan, eta: Eta
    ) -> Self:
        """Rank 0 tells; the journals of other ranks lead nowhere."""
        if rank == 0:
            return cls(run.events, Console(sys.stdout), JobMetrics(registry), plan, eta)
        return cls(Path(os.devnull), Console(None), JobMetrics(CollectorRegistry()), plan, eta)

    def started(self, progress: Progress, facts: RunFacts, event: RunEvent) -> None:
        """A process group starts."""
        self._last_step = progress.step
        self._metrics.started(facts, step=progress.step, epoch=event.epoch)
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
        """A step is done; where a log interval ends, more is told."""
        self._metrics.count_step(step, self._epoch(step))

    def trained(self, event: TrainEvent, *, target_steps: int, loss_scale: float | None) -> None:
        """A log interval ended."""
        self._metrics.trained(event, loss_scale)
        num_steps, self._last_step = event.step - self._last_step, event.step
        num_samples = num_steps * self._plan.global_batch_size
        self._eta.stepped(num_steps, num_samples / event.images_per_second)
        left = self._eta.seconds_after(event.step)
        self.console.line(train_line(event, target_steps=target_steps, eta_seconds=left))
        self._write(event)

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

    def record_damage(self, step: int, rank: int, damage: Damage) -> None:
        """An image is damaged and another one stands in for it; `rank` has warned of it itself."""
        event = DamagedImage(
            step=step,
            epoch=self._epoch(step),
            rank=rank,
            sample=damage.sample,
            shard=damage.shard,
            what=damage.what,
        )
        self._write(event)

    def evaluated(self, step: int, result: Evaluation) -> None:
        self._eta.evaluated(result.seconds)
        event = result.event("train", step=step, epoch=self._epoch(step))
        self._metrics.evaluated(event)
        self.console.line(evaluation_line(result))
        self._write(event)

    def checkpointed(
        self, step: int, path: Path, *, num_bytes: int, seconds: float, reason: CheckpointReason
    ) -> None:
        event = CheckpointEvent(
            step=step,
            epoch=self._epoch(step),
            path=str(path),
            num_bytes=num_bytes,
            seconds=seconds,
            reason=reason,
        )
        self._eta.saved(seconds)
        self._metrics.checkpointed(event)
        self.console.line(f"saved {path} ({num_bytes / 1e6:.1f} MB in {seconds:.2f} s)")
        self._write(event)

    def checkpoint_failed(self, reason: CheckpointReason, error: str | None) -> None:
        """None: the run ends with the error, which says it."""
        self._metrics.checkpoint_failed(reason)
        if error is not None:
            self.console.line(f"warning: no checkpoint saved: {error}")

    def stop_requested(self, step: int, source: StopSource) -> None:
        self._metrics.stop_requested()
        self.console.line(f"stopping at step {step:,}, asked by {source}")
        self._write(SignalEvent(step=step, epoch=self._epoch(step), source=source))

    def ended(
        self,
        step: int,
        outcome: EndOutcome,
        error: str | None = None,
        cause: FailureCause | None = None,
    ) -> None:
        """The process group leaves."""
        self._metrics.ended()
        epoch = self._epoch(step)
        self._write(EndEvent(step=step, epoch=epoch, outcome=outcome, error=error, cause=cause))
        with self._no_room_tolerated():
            self._events.close()

    def _epoch(self, step: int) -> float:
        return step / self._plan.steps_per_epoch

    def _write(self, event: Event) -> None:
        with self._no_room_tolerated():
            self._events.write(event)

    @contextlib.contextmanager
    def _no_room_tolerated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._has_warned:
                _log.warning("cannot write events: %s; training goes on", error.strerror)
            self._has_warned = True
