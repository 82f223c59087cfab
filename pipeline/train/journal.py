"""Tells what happens in a run: to the console, to `events.jsonl` and to Prometheus."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from prometheus_client import CollectorRegistry

from pipeline.data.order.partition import BatchPlan
from pipeline.data.readers.reading import Damage
from pipeline.metrics.job import OF_EVALUATION, OF_TRAINING, JobMetrics
from pipeline.metrics.run_facts import RunFacts
from pipeline.run.console import Console
from pipeline.run.directory import RunDirectory
from pipeline.run.ending import EndOutcome, FailureCause, StopSource
from pipeline.run.event_fields import Kind
from pipeline.run.events import EventLog, count_resumes, read_events
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

    def started(self, progress: Progress, facts: RunFacts, row: Mapping[str, Any]) -> None:
        """A process group starts; `row` has the fields of a `run` event."""
        self._last_step = progress.step
        epoch = progress.step / self._plan.steps_per_epoch
        self._metrics.started(facts, step=progress.step, epoch=epoch)
        if row["resumed_from"] is not None:
            self._metrics.resumed(
                self._num_resumes + 1,
                step=progress.step,
                history=[old for old in self._history if old["step"] <= progress.step],
                best_top1=progress.best_top1,
                best_top5=progress.best_top5,
            )
        self._history.clear()
        self._write("run", progress.step, row)

    def count_step(self, step: int) -> None:
        """A step is done; where a log interval ends, more is told."""
        self._metrics.count_step(step, step / self._plan.steps_per_epoch)

    def trained(
        self, step: int, row: Mapping[str, Any], *, target_steps: int, loss_scale: float | None
    ) -> None:
        """A log interval ended; `row` has the fields of a `train` event."""
        epoch = step / self._plan.steps_per_epoch
        self._metrics.trained(
            grad_scale=loss_scale,
            **{name: row[name] for name in OF_TRAINING},
        )
        num_steps, self._last_step = step - self._last_step, step
        num_samples = num_steps * self._plan.global_batch_size
        self._eta.stepped(num_steps, num_samples / row["images_per_second"])
        left = self._eta.seconds_after(step)
        self.console.line(
            train_line(row, step, epoch=epoch, target_steps=target_steps, eta_seconds=left)
        )
        self._write("train", step, row)

    def record_learning(self, step: int, loss: float, *, is_stuck: bool) -> None:
        """Whether the network still guesses, long after it should have begun to learn."""
        self._metrics.record_learning(is_stuck=is_stuck)
        if is_stuck and not self._is_stuck:
            self.console.line(
                f"warning: not learning: after {step:,} steps the loss of {loss:.4f} is still that "
                "of guessing; try another learning rate, initialisation or seed"
            )
            self._write("alarm", step, {"reason": "not_learning", "loss": loss})
        self._is_stuck = is_stuck

    def record_damage(self, step: int, rank: int, damage: Damage) -> None:
        """An image is damaged and another one stands in for it; `rank` has warned of it itself."""
        row = {"reason": "damaged_image", "rank": rank, **asdict(damage)}
        self._write("alarm", step, row)

    def evaluated(self, step: int, result: Evaluation) -> None:
        self._eta.evaluated(result.seconds)
        row = result.event("train")
        values = {name: row[name] for name in OF_EVALUATION}
        self._metrics.evaluated(result.spec.split, **values)
        self.console.line(evaluation_line(result))
        self._write("eval", step, row)

    def checkpointed(
        self, step: int, path: Path, *, num_bytes: int, seconds: float, reason: str
    ) -> None:
        self._eta.saved(seconds)
        self._metrics.checkpointed(reason, seconds=seconds, num_bytes=num_bytes, step=step)
        self.console.line(f"saved {path} ({num_bytes / 1e6:.1f} MB in {seconds:.2f} s)")
        fields = {"path": str(path), "num_bytes": num_bytes, "seconds": seconds, "reason": reason}
        self._write("checkpoint", step, fields)

    def checkpoint_failed(self, reason: str, error: str) -> None:
        self._metrics.checkpoint_failed(reason)
        self.console.line(f"warning: no checkpoint saved: {error}")

    def stop_requested(self, step: int, source: StopSource) -> None:
        self._metrics.stop_requested()
        self.console.line(f"stopping at step {step:,}, asked by {source}")
        self._write("signal", step, {"source": source})

    def ended(
        self,
        step: int,
        outcome: EndOutcome,
        error: str | None = None,
        cause: FailureCause | None = None,
    ) -> None:
        """The process group leaves."""
        self._metrics.ended()
        fields = {"outcome": outcome, "error": error, "cause": cause}
        self._write("end", step, {name: value for name, value in fields.items() if value})
        with self._no_room_tolerated():
            self._events.close()

    def _write(self, kind: Kind, step: int, fields: Mapping[str, Any]) -> None:
        epoch = step / self._plan.steps_per_epoch
        with self._no_room_tolerated():
            self._events.write(kind, step=step, epoch=epoch, **fields)

    @contextlib.contextmanager
    def _no_room_tolerated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._has_warned:
                _log.warning("cannot write events: %s; training goes on", error.strerror)
            self._has_warned = True
