"""Counts the steps, adds them up on the device, and reports them when a log interval ends."""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Iterator, Sequence

import torch

from pipeline.data.open import Batches, Damage
from pipeline.optim.fingerprint import halves_of
from pipeline.ranks.mesh import Mesh
from pipeline.ranks.world import World
from pipeline.run.events import TrainEvent
from pipeline.train.clock import StepTime
from pipeline.train.components import Components
from pipeline.train.rank_sums import RankSums, RankTimes, waiting_label
from pipeline.train.replicas import ReplicaCheck
from pipeline.train.stragglers import Stragglers

_GUESSING_TOLERANCE = 0.005


class LogInterval:
    """Sums of the steps since the last log; nothing here waits for the device before `reduce`."""

    def __init__(self, world: World, mesh: Mesh) -> None:
        self._world = world
        self._mesh = mesh
        self._sums = torch.zeros(2, dtype=torch.float64, device=world.device)
        """Loss and right answers."""
        waits_in = waiting_label(world.size, mesh.ranks_per_replica)
        self._mine = RankSums(times=RankTimes(waits_in=waits_in))
        self.norm: torch.Tensor | None = None
        """Of the gradients of the last step."""
        self.damages: list[Damage] = []
        """Found by this rank, and not recorded yet."""

    @property
    def is_begun(self) -> bool:
        return self._mine.num_samples > 0

    def note_predictions(
        self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor
    ) -> None:
        """Add a micro-batch: its summed loss, logits N×C and labels N."""
        self._sums[0] += loss
        self._sums[1] += (logits.argmax(1) == labels).sum()
        self._mine.num_samples += len(labels)

    def note_time(self, step: StepTime) -> None:
        self._mine.times.add(step.phase_seconds)

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

    def reduce(self, fingerprint: torch.Tensor) -> list[RankSums]:
        """The sums of each rank on every rank; `fingerprint`, an int64, is of this rank's weights.

        The ranks call it together.
        """
        return self._mine.gather(self._world, torch.cat([self._sums, halves_of(fingerprint)]))

    def event(
        self,
        ranks: Sequence[RankSums],
        *,
        step: int,
        epoch: float,
        learning_rate: float,
        skipped_steps: int,
    ) -> TrainEvent:
        """The interval's `train` event, over all `ranks`; `phase_seconds` is this rank's.

        Speed is from end to end: samples by the whole time of the steps, waiting included.
        """
        num_samples = sum(rank.num_samples for rank in ranks)
        all_seconds = sum(rank.times.seconds for rank in ranks)
        data_wait = sum(rank.times.phase_seconds["data_wait"] for rank in ranks)
        # All ranks of a replica count its samples, which leaves loss and top-1 as they are.
        all_samples = num_samples / self._mesh.ranks_per_replica
        return TrainEvent(
            step=step,
            epoch=epoch,
            loss=sum(rank.loss for rank in ranks) / num_samples,
            top1=sum(rank.correct for rank in ranks) / num_samples,
            images_per_second=all_samples * self._world.size / all_seconds,
            data_wait_ratio=data_wait / all_seconds,
            phase_seconds=self._mine.times.phase_seconds,
            grad_norm=None if self.norm is None else float(self.norm),
            learning_rate=learning_rate,
            skipped_steps=skipped_steps,
        )


class StepLog:
    """The current log interval, and what the metrics of this rank get."""

    def __init__(self, components: Components) -> None:
        self._components = components
        self.interval = LogInterval(components.world, components.mesh)
        self.replicas = ReplicaCheck(components)
        self._stragglers = Stragglers(components.mesh.ranks_per_replica)
        self._hosts = components.world.all_gather_object(socket.gethostname())

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

        Raises `ValueError` if the replicas differ or the loss is not a number.
        """
        components, progress = self._components, self._components.progress
        step, interval = progress.step, self.interval
        fingerprint = self.replicas.fingerprint()
        interval.wait()
        self._collect_times()
        for rank, damages in enumerate(interval.take_damages()):
            components.journal.record_damages(step, rank, damages)
        ranks = interval.reduce(fingerprint)
        event = interval.event(
            ranks,
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
        components.metrics.record_loss(ranks[components.world.rank].loss)
        self.replicas.check([rank.fingerprint for rank in ranks])
        loss, scale = event.loss, components.replica.loss_scale
        if not math.isfinite(loss) and scale is None:
            spoiled = [number for number, rank in enumerate(ranks) if not math.isfinite(rank.loss)]
            who = (
                f", by images of rank {spoiled[0]} alone" if len(spoiled) == 1 < len(ranks) else ""
            )
            raise ValueError(
                f"the loss is {loss} at step {step}{who}: training has diverged; lower "
                "optim.learning_rate or raise schedule.warmup_ratio"
            )
        components.journal.trained(event, scale)
        self._look_for_stragglers(ranks)
        if step * components.plan.global_batch_size >= components.config.not_learning_after_samples:
            is_stuck = is_guessing(loss, components.manifest.num_classes)
            components.journal.record_learning(step, loss, is_stuck=is_stuck)

    def _look_for_stragglers(self, ranks: Sequence[RankSums]) -> None:
        components = self._components
        delay = self._stragglers.look([rank.times for rank in ranks])
        is_me = delay is not None and delay.rank == components.world.rank
        components.metrics.record_straggler(delay.phase if delay and is_me else None)
        components.journal.record_delay(components.progress.step, delay, self._hosts)

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
