"""The training loop: steps, and between them logging, evaluation, checkpoints and stopping."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from data_prep.shard_set.manifest import Manifest
from pipeline.config.schema import Config
from pipeline.data.augment.device import to_device
from pipeline.data.augment.preprocess import Augmenter, Viewer
from pipeline.data.batches.batch import Batch, Batches
from pipeline.data.open import OpenBatches
from pipeline.data.order.partition import BatchPlan
from pipeline.data.order.randomness import dropout_keys
from pipeline.data.readers.reading import ReadCost, Reader
from pipeline.metrics.rank import RankMetrics
from pipeline.optim.precision import MAX_SKIPPED_IN_A_ROW, Outcome
from pipeline.optim.replica import Replica
from pipeline.optim.schedule import Position, learning_rates
from pipeline.ranks.failure import sentence_of
from pipeline.ranks.mesh import Mesh
from pipeline.ranks.stop import StopRequests
from pipeline.ranks.watchdog import Phase, Watchdog
from pipeline.ranks.world import World
from pipeline.run import checkpoint
from pipeline.run.directory import RunDirectory
from pipeline.run.settings import Settings
from pipeline.train.alarm import is_guessing
from pipeline.train.clock import StepClock
from pipeline.train.due import is_due
from pipeline.train.evaluation import EvaluationSpec, evaluate, save_predictions
from pipeline.train.journal import Journal
from pipeline.train.log_interval import LogInterval
from pipeline.train.progress import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class Components:
    """Everything that training works with, made by `pipeline.train.prepare`."""

    settings: Settings
    manifest: Manifest
    plan: BatchPlan
    target_steps: int
    """Of the whole run."""
    end_step: int
    """Where this command ends."""
    run: RunDirectory
    world: World
    mesh: Mesh
    replica: Replica
    augmenter: Augmenter
    viewer: Viewer
    open_batches: OpenBatches
    val_reader: Reader
    progress: Progress
    journal: Journal
    metrics: RankMetrics
    watchdog: Watchdog

    @property
    def config(self) -> Config:
        return self.settings.config


class TrainingLoop:
    """Trains from where `components.progress` is, up to `components.end_step`."""

    def __init__(self, components: Components) -> None:
        self._components = components
        self._clock = StepClock(components.world.device)
        self._log_interval = LogInterval(components.world, components.mesh)
        self._saved_step = components.progress.step
        self._learning_rate = 0.0
        self._outcome: Outcome | None = None
        components.replica.when_gradients_are_ready = self._gradients_are_ready

    def run(self, stops: StopRequests) -> None:
        """Train until `components.end_step` steps are done or the ranks agree to stop.

        Either way the state is then saved. Raises `ValueError` if training diverges, and what the
        reader and the other ranks' ends raise.
        """
        progress = self._components.progress
        source = None
        with self._components.open_batches(progress.step, self._components.end_step) as batches:
            self._clock.restart()
            with self._recording_own_damages(batches):
                while progress.step < self._components.end_step and source is None:
                    self._train_step(batches)
                    self._between_steps()
                    self._enter(Phase.AGREEING)
                    source = stops.agreed(progress.step)
        self._record_damages()
        if source is not None:
            self._components.journal.stop_requested(progress.step, source)
        if self._saved_step != progress.step:
            self._save("periodic" if source is None else "preempt", must_succeed=True)
        stops.close()

    def _enter(self, phase: Phase) -> None:
        self._components.watchdog.enter(phase, self._components.progress.step)

    def _gradients_are_ready(self) -> None:
        self._clock.mark("forward_backward")
        self._enter(Phase.AVERAGING)

    def _train_step(self, batches: Batches) -> None:
        components, clock = self._components, self._clock
        num_samples = 0
        for micro_batch in range(components.plan.accumulation_steps):
            clock.mark("other")
            self._enter(Phase.READING)
            batch = next(batches)
            clock.mark("data_wait")
            self._enter(Phase.COMPUTING)
            self._add_gradients(batch, micro_batch)
            num_samples += batch.num_valid
        self._enter(Phase.UPDATING)
        self._settle()
        self._set_rates()
        step = components.progress.step + 1
        norm, self._outcome = components.replica.update(wants_norm=self._is_logged(step))
        clock.mark("optimizer")
        components.progress.count_step()
        components.journal.count_step(step)
        self._log_interval.note_norm(norm)
        self._account(batches.take_cost())
        components.metrics.record_queue(batches.queued_batches)
        clock.end_step(num_samples)
        self._collect_times()

    def _add_gradients(self, batch: Batch, micro_batch: int) -> None:
        components, clock, step = self._components, self._clock, self._components.progress.step
        epoch, samples = components.plan.epoch_of(step), batch.samples
        images, labels = batch.to(components.world.device)
        keys = to_device(
            dropout_keys(components.config.seed, epoch, samples), components.world.device
        )
        clock.mark("h2d")
        is_last = micro_batch + 1 == components.plan.accumulation_steps
        loss, logits = components.replica.add_gradients(
            components.augmenter(images, samples, epoch, batch.crop_windows),
            keys,
            labels,
            step_samples=components.plan.samples_in_step(step),
            is_last=is_last,
        )
        is_averaged = is_last and components.mesh.same_column is not None
        clock.mark("sync_wait" if is_averaged else "forward_backward")
        self._log_interval.note_predictions(loss, logits, labels)

    def _account(self, cost: ReadCost) -> None:
        """Count what reading took, and keep what was found damaged for the next log."""
        components = self._components
        components.metrics.record_loaded(
            components.config.data.reader,
            num_samples=cost.num_samples,
            num_bytes=cost.num_bytes,
            read_seconds=cost.read_seconds,
            decode_seconds=cost.decode_seconds,
            num_replaced=cost.num_replaced,
        )
        self._log_interval.note_damages(cost.damages)

    def _settle(self) -> None:
        """Learn whether the last step was skipped.

        In fp16 the device has the next step's passes to go on with meanwhile; in other precisions
        nothing is asked of it. Raises `ValueError` if no loss scale helps.
        """
        components, outcome = self._components, self._outcome
        if outcome is None:
            return
        self._outcome = None
        skipped = outcome.was_skipped()
        components.progress.settle_step(skipped=skipped)
        if skipped:
            components.metrics.record_skip()
        if components.progress.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise ValueError(
                f"the gradients of {MAX_SKIPPED_IN_A_ROW} steps in a row, up to step "
                f"{components.progress.step}, were not finite: lower optim.learning_rate, or use "
                "--precision bf16"
            )

    def _set_rates(self) -> None:
        components = self._components
        position = Position(
            updates=components.progress.updates,
            steps_per_epoch=components.plan.steps_per_epoch,
            target_steps=components.target_steps,
            losses=components.progress.losses,
        )
        rates = learning_rates(components.config.optim, components.config.schedule, position)
        components.replica.set_rates(rates)
        self._learning_rate = rates.weights

    def _collect_times(self) -> None:
        for time_of_step in self._clock.finished():
            self._log_interval.note_time(time_of_step)
            self._components.metrics.record_step(
                time_of_step.num_samples / self._components.mesh.ranks_per_replica,
                time_of_step.phase_seconds,
            )

    def _between_steps(self) -> None:
        """Whatever is due after the step just done; its time is not the next step's."""
        components, step = self._components, self._components.progress.step
        evaluates = self._is_due(components.config.evaluation.every_epochs, step)
        saves = self._is_due(components.config.checkpoint.every_epochs, step)
        if self._is_logged(step):
            self._log()
        best_top1 = self._evaluate() if evaluates else None
        if saves or best_top1 is not None:
            self._save("periodic" if saves else "best", best_top1)
        if evaluates or saves:
            self._clock.restart()

    def _is_logged(self, step: int) -> bool:
        """Whether a log interval ends with `step`: also before what takes the time of some."""
        config = self._components.config
        return (
            step % config.log_every_steps == 0
            or self._is_due(config.evaluation.every_epochs, step)
            or self._is_due(config.checkpoint.every_epochs, step)
        )

    def _is_due(self, every_epochs: float, step: int) -> bool:
        components = self._components
        return is_due(step, every_epochs, components.plan.steps_per_epoch, components.target_steps)

    def _log(self) -> None:
        """Reduce and tell the interval: here the device is waited for, and in no step.

        Raises `ValueError` if the loss is not a number.
        """
        components = self._components
        self._enter(Phase.LOGGING)
        self._settle()
        self._log_interval.wait()
        self._collect_times()
        self._record_damages()
        row = self._log_interval.reduce() | {
            "learning_rate": self._learning_rate,
            "skipped_steps": components.progress.skipped_steps,
        }
        self._log_interval = LogInterval(components.world, components.mesh)
        if components.world.device.type == "cuda":
            components.metrics.record_gpu_memory(
                torch.cuda.memory_allocated(), torch.cuda.max_memory_reserved()
            )
        scale = components.replica.loss_scale
        if not math.isfinite(row["loss"]) and scale is None:
            raise ValueError(
                f"the loss is {row['loss']} at step {components.progress.step}: training has "
                "diverged; lower optim.learning_rate or raise schedule.warmup_ratio"
            )
        components.journal.trained(
            components.progress.step, row, target_steps=components.target_steps, loss_scale=scale
        )
        self._watch_learning(row["loss"])

    def _record_damages(self) -> None:
        """Let rank 0 record what all ranks found damaged since the last time."""
        components = self._components
        for rank, damages in enumerate(self._log_interval.take_damages()):
            for damage in damages:
                components.journal.record_damage(components.progress.step, rank, damage)

    @contextlib.contextmanager
    def _recording_own_damages(self, batches: Batches) -> Iterator[None]:
        """If the block fails, let rank 0 record what it found itself: others may be gone."""
        try:
            yield
        except Exception:
            components = self._components
            self._account(batches.take_cost())
            for damage in self._log_interval.damages:
                components.journal.record_damage(
                    components.progress.step, components.world.rank, damage
                )
            raise

    def _watch_learning(self, loss: float) -> None:
        components, step = self._components, self._components.progress.step
        if step * components.plan.global_batch_size >= components.config.not_learning_after_samples:
            is_stuck = is_guessing(loss, components.manifest.num_classes)
            components.journal.record_learning(step, loss, is_stuck=is_stuck)

    def _evaluate(self) -> float | None:
        """Evaluate `val`; returns its top-1 if that is above the best checkpoint's."""
        components, step = self._components, self._components.progress.step
        result = evaluate(
            components.replica.model,
            components.val_reader,
            components.viewer,
            components.world,
            components.mesh,
            spec=EvaluationSpec(
                split="val",
                num_classes=components.manifest.num_classes,
                views=components.config.evaluation.views,
                shard_set=components.manifest.title,
                manifest_sha256=components.settings.manifest_sha256,
                own_shards=True,
            ),
            block_size=components.config.evaluation.block_size,
            depth=components.config.data.prefetch_batches,
            enter=self._enter,
        )
        if components.world.is_main:
            try:
                save_predictions(components.run, step, result)
            except OSError as error:
                components.journal.console.line(
                    f"warning: predictions not saved: {sentence_of(error)}"
                )
        components.journal.evaluated(step, result)
        is_best = components.progress.evaluated(
            loss=result.loss, top1=result.top1, top5=result.top5
        )
        return result.top1 if is_best else None

    def _save(
        self, reason: str, best_top1: float | None = None, *, must_succeed: bool = False
    ) -> None:
        """Rank 0 saves while the others wait for word of it; with `best_top1` it is the best.

        A disk that does not take it costs this checkpoint only, unless it `must_succeed`, because
        the process ends: then `OSError` is raised.
        """
        self._enter(Phase.AGREEING)
        self._settle()
        components, progress = self._components, self._components.progress
        step, marked = progress.step, progress.marked
        if not all(components.world.all_gather_object(components.replica.is_finite())):
            raise ValueError(
                f"a weight is not a number at step {step}: training has diverged, "
                "nothing is saved; lower optim.learning_rate"
            )
        if best_top1 is not None:
            progress.marked = step, best_top1
        state = self._state() if components.mesh.replica == 0 else None
        self._enter(Phase.SAVING)
        error = None
        if components.world.is_main:
            assert state is not None
            error = self._write_checkpoint(reason, state)
            self._enter(Phase.AGREEING)  # only the others may wait as long as saving takes
        error = components.world.broadcast_object(error)
        if error is None:
            self._saved_step = step
            return
        progress.marked = marked
        components.journal.checkpoint_failed(reason, error)
        if must_succeed:
            raise OSError(f"the checkpoint of step {step} could not be saved: {error}")

    def _write_checkpoint(self, reason: str, state: dict[str, Any]) -> str | None:
        """Save, and tell; returns what went wrong."""
        components, step = self._components, self._components.progress.step
        directory, begin = components.run.checkpoints, time.perf_counter()
        try:
            path, num_bytes = checkpoint.save(directory, step, state)
        except OSError as error:
            return sentence_of(error)
        seconds = time.perf_counter() - begin
        components.journal.checkpointed(
            step, path, num_bytes=num_bytes, seconds=seconds, reason=reason
        )
        self._tidy()
        return None

    def _tidy(self) -> None:
        """Mark the best checkpoint and delete old ones; the next save makes up for what fails."""
        components, directory = self._components, self._components.run.checkpoints
        try:
            if components.progress.marked is not None:
                checkpoint.mark_best(directory, components.progress.marked[0])
            checkpoint.prune(directory, components.config.checkpoint.keep)
        except OSError as error:
            components.journal.console.line(
                f"warning: the best checkpoint not marked or old ones not deleted: "
                f"{sentence_of(error)}"
            )

    def _state(self) -> dict[str, Any]:
        components = self._components
        return components.replica.state_dict() | {
            "progress": components.progress.state_dict(),
            "settings": json.dumps(components.settings.to_json()),
        }
