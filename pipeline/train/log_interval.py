"""What a log interval adds up to: on the device while it lasts, over all ranks when it ends."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.data.open import Damage
from pipeline.ranks.mesh import Mesh
from pipeline.ranks.world import World
from pipeline.run.events import TrainEvent
from pipeline.run.phase import PHASE_LABELS
from pipeline.train.clock import StepTime


class LogInterval:
    """Sums of the steps since the last log; nothing here waits for the device before `reduce`."""

    def __init__(self, world: World, mesh: Mesh) -> None:
        self._world = world
        self._mesh = mesh
        self._sums = torch.zeros(2, dtype=torch.float64, device=world.device)
        """Loss and right answers."""
        self._num_samples = 0
        self._norm: torch.Tensor | None = None
        self.damages: list[Damage] = []
        """That this rank has found, and not told yet."""
        self._phase_seconds = dict.fromkeys(PHASE_LABELS, 0.0)

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

    def note_norm(self, norm: torch.Tensor | None) -> None:
        """Keep the latest norm of the gradients."""
        self._norm = norm

    def note_time(self, step: StepTime) -> None:
        for label, seconds in step.phase_seconds.items():
            self._phase_seconds[label] += seconds

    def note_damages(self, damages: Sequence[Damage]) -> None:
        self.damages += damages

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
        # All ranks of a replica count its samples, which says nothing of loss and top-1.
        all_samples = num_samples / self._mesh.ranks_per_replica
        return TrainEvent(
            step=step,
            epoch=epoch,
            loss=loss / num_samples,
            top1=correct / num_samples,
            images_per_second=all_samples * self._world.size / all_seconds,
            data_wait_ratio=wait / all_seconds,
            phase_seconds=self._phase_seconds,
            grad_norm=None if self._norm is None else float(self._norm),
            learning_rate=learning_rate,
            skipped_steps=skipped_steps,
        )
