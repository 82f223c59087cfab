"""Counts the steps, and reports them when a log interval ends."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch

from pipeline.data.open import Batches
from pipeline.train.components import Components
from pipeline.train.log_interval import LogInterval

_GUESSING_TOLERANCE = 0.005


class StepLog:
    """The log interval that the run is in, and what the metrics of this rank are given."""

    def __init__(self, components: Components) -> None:
        self._components = components
        self._new_interval()

    def _new_interval(self) -> None:
        self.interval = LogInterval(self._components.world, self._components.mesh)

    def count_step(self, batches: Batches, num_samples: int, norm: torch.Tensor | None) -> None:
        """The step of `progress` is done, with `num_samples` of this rank's replica."""
        components, step = self._components, self._components.progress.step
        components.journal.count_step(step)
        self.interval.note_norm(norm)
        self._count_cost(batches)
        components.metrics.record_queue(batches.queued_batches)
        components.clock.end_step(num_samples)
        self._collect_times()

    def _count_cost(self, batches: Batches) -> None:
        """Count what reading took, and keep what was found damaged for the next log."""
        cost = batches.take_cost()
        self._components.metrics.record_loaded(
            self._components.config.data.reader,
            num_samples=cost.num_samples,
            num_bytes=cost.num_bytes,
            read_seconds=cost.read_seconds,
            decode_seconds=cost.decode_seconds,
            num_replaced=cost.num_replaced,
        )
        self.interval.note_damages(cost.damages)

    def _collect_times(self) -> None:
        for time_of_step in self._components.clock.finished():
            self.interval.note_time(time_of_step)
            self._components.metrics.record_step(
                time_of_step.num_samples / self._components.mesh.ranks_per_replica,
                time_of_step.phase_seconds,
            )

    def end_interval(self, learning_rate: float) -> None:
        """Add up the interval over all ranks and report it; this waits for the device.

        Raises `ValueError` if the loss is not a number.
        """
        components, step = self._components, self._components.progress.step
        self.interval.wait()
        self._collect_times()
        self._record_damages()
        event = self.interval.reduce(
            step=step,
            epoch=step / components.plan.steps_per_epoch,
            learning_rate=learning_rate,
            skipped_steps=components.progress.skipped_steps,
        )
        self._new_interval()
        if components.world.device.type == "cuda":
            components.metrics.record_gpu_memory(
                torch.cuda.memory_allocated(), torch.cuda.max_memory_reserved()
            )
        loss, scale = event.loss, components.replica.loss_scale
        if not math.isfinite(loss) and scale is None:
            raise ValueError(
                f"the loss is {loss} at step {step}: training has diverged; lower "
                "optim.learning_rate or raise schedule.warmup_ratio"
            )
        components.journal.trained(event, target_steps=components.target_steps, loss_scale=scale)
        if step * components.plan.global_batch_size >= components.config.not_learning_after_samples:
            is_stuck = is_guessing(loss, components.manifest.num_classes)
            components.journal.record_learning(step, loss, is_stuck=is_stuck)

    def _record_damages(self) -> None:
        """Let rank 0 record what all ranks found damaged since the last time."""
        components = self._components
        for rank, damages in enumerate(self.interval.take_damages()):
            for damage in damages:
                components.journal.record_damage(components.progress.step, rank, damage)

    @contextlib.contextmanager
    def recording_own_damages(self, batches: Batches) -> Iterator[None]:
        """If the block fails, let rank 0 record what it found itself: others may be gone."""
        try:
            yield
        except Exception:
            components = self._components
            self._count_cost(batches)
            for damage in self.interval.damages:
                components.journal.record_damage(
                    components.progress.step, components.world.rank, damage
                )
            raise


def is_guessing(loss: float, num_classes: int) -> bool:
    """Whether a cross-entropy is within 0.5 % of ln(classes), that of equal odds for all classes.

    AlexNet begins there, and with an unlucky initialisation stays: Caffe's authors called it a
    flat loss.
    """
    if num_classes < 2:
        return False
    chance = math.log(num_classes)
    return abs(loss - chance) <= _GUESSING_TOLERANCE * chance
