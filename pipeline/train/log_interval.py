"""Counts the steps, adds them up on the device, and reports them when a log interval ends."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch

from pipeline.data.open import Batches, Damage
from pipeline.ranks.mesh import Mesh
from pipeline.ranks.world import World
from pipeline.run.events import TrainEvent
from pipeline.run.phase import PHASE_LABELS
from pipeline.train.clock import StepTime
from pipeline.train.components import Components

_GUESSING_TOLERANCE = 0.005


class LogInterval:
    """Sums of the steps since the last log; nothing here waits for the device before `reduce`."""

    def __init__(self, world: World, mesh: Mesh) -> None:
        self._world = world
        self._mesh = mesh
        self._sums = torch.zeros(2, dtype=torch.float64, device=world.device)
        """Loss and right answers."""
        self._num_samples = 0
        self._phase_seconds = dict.fromkeys(PHASE_LABELS, 0.0)
        self.norm: torch.Tensor | None = None
        """Of the gradients of the last step."""
        self.damages: list[Damage] = []
        """Found by this rank, and not recorded yet."""

    @property
    def is_begun(self) -> bool:
        return self._num_samples > 0

    def note_predictions(
        self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor
    ) -> None:
        """Add a micro-batch: its summed loss, logits N×C and labels N."""
        self._sums[0] += loss
        self._sums[1] += (logits.argmax(1) == labels).sum()
        self._num_samples += len(labels)

    def note_time(self, step: StepTime) -> None:
        for label, seconds in step.phase_seconds.items():
            self._phase_seconds[label] += seconds

    def take_damages(self) -> list[list[Damage]]:
        """What each rank has found damaged since the last call; all ranks call it together."""
        count = torch.tensor(float(len(self.damages)), device=self._world.device)
        if not self._world.all_reduce(count):  # as nearly always: then it costs one number
            return []
        damages, self.damages = self.damages, []
        return self._world.all_gather_object(damages)

    def wait(self) -> None:
        """Let the device finish the interval's steps, so that their times can be read."""
        self._sums.tolist()

    def reduce(
        self, *, step: int, epoch: float, learning_rate: float, skipped_steps: int
    ) -> TrainEvent:
        """The interval's `train` event, over all ranks; `phase_seconds` is this rank's.

        Speed is from end to end: samples by the whole time of the steps, waiting included.
        """
        seconds = sum(self._phase_seconds.values())
        local = [float(self._num_samples), self._phase_seconds["data_wait"], seconds]
        ours = torch.tensor(local, dtype=torch.float64, device=self._world.device)
        sums = torch.cat([self._sums, ours])
        loss, correct, num_samples, wait, all_seconds = self._world.all_reduce(sums).tolist()
        # All ranks of a replica count its samples, which leaves loss and top-1 as they are.
        all_samples = num_samples / self._mesh.ranks_per_replica
        return TrainEvent(
            step=step,
            epoch=epoch,
            loss=loss / num_samples,
            top1=correct / num_samples,
            images_per_second=all_samples * self._world.size / all_seconds,
            data_wait_ratio=wait / all_seconds,
            phase_seconds=self._phase_seconds,
            grad_norm=None if self.norm is None else float(self.norm),
            learning_rate=learning_rate,
            skipped_steps=skipped_steps,
        )


class StepLog:
    """The current log interval, and what the metrics of this rank get."""

    def __init__(self, components: Components) -> None:
        self._components = components
        self.interval = LogInterval(components.world, components.mesh)

    def count_step(self, batches: Batches, num_samples: int, norm: torch.Tensor | None) -> None:
        """The step of `progress` is done, with `num_samples` of this rank's replica."""
        components = self._components
        components.journal.count_step(components.progress.step)
        self.interval.norm = norm
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
        self.interval.damages += cost.damages

    def _collect_times(self) -> None:
        components = self._components
        for time_of_step in components.clock.finished():
            self.interval.note_time(time_of_step)
            num_samples = time_of_step.num_samples / components.mesh.ranks_per_replica
            components.metrics.record_step(num_samples, time_of_step.phase_seconds)

    def end_interval(self, learning_rate: float) -> None:
        """Add up the interval over all ranks and report it; this waits for the device.

        Raises `ValueError` if the loss is not a number.
        """
        components, progress = self._components, self._components.progress
        step, interval = progress.step, self.interval
        interval.wait()
        self._collect_times()
        for rank, damages in enumerate(interval.take_damages()):
            components.journal.record_damages(step, rank, damages)
        event = interval.reduce(
            step=step,
            epoch=components.epoch,
            learning_rate=learning_rate,
            skipped_steps=progress.skipped_steps,
        )
        self.interval = LogInterval(components.world, components.mesh)
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
        components.journal.trained(event, scale)
        if step * components.plan.global_batch_size >= components.config.not_learning_after_samples:
            is_stuck = is_guessing(loss, components.manifest.num_classes)
            components.journal.record_learning(step, loss, is_stuck=is_stuck)

    @contextlib.contextmanager
    def recording_own_damages(self, batches: Batches) -> Iterator[None]:
        """If the block fails, let rank 0 record what it found itself: others may be gone."""
        try:
            yield
        except Exception:
            components = self._components
            self._count_cost(batches)
            components.journal.record_damages(
                components.progress.step, components.world.rank, self.interval.damages
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
