"""What comes every few epochs and after the last step, and how long a run will still take."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.schema import Config
from pipeline.data.open import BatchPlan, every_steps

_KEPT = 0.9
"""What a measured time weighs beside the next one: about the last ten count."""


def is_due(step: int, every_epochs: float, steps_per_epoch: int, target_steps: int) -> bool:
    """Whether it is due after `step` steps. `every_epochs` 0: after the last one only."""
    if step == target_steps:
        return True
    return every_epochs > 0 and step % every_steps(every_epochs, steps_per_epoch) == 0


def num_due(step: int, every_epochs: float, steps_per_epoch: int, target_steps: int) -> int:
    """How often it is still due once `step` steps are done."""
    if step >= target_steps:
        return 0
    if every_epochs == 0:
        return 1
    every = every_steps(every_epochs, steps_per_epoch)
    return target_steps // every - step // every + (target_steps % every > 0)


@dataclass(slots=True)
class Pace:
    """How long one of several alike things takes; 0 seconds if nothing is known."""

    seconds: float = 0.0
    count: float = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        self.seconds = _KEPT * self.seconds + seconds
        self.count = _KEPT * self.count + count

    @property
    def mean(self) -> float:
        return self.seconds / self.count if self.count else 0.0


class Eta:
    """How long a run will still take, by what this process group has measured."""

    def __init__(self, config: Config, plan: BatchPlan, target_steps: int) -> None:
        self._config = config
        self._steps_per_epoch = plan.steps_per_epoch
        self.target_steps = target_steps
        self.step, self.evaluation, self.save = Pace(), Pace(), Pace()
        """A step without what came between the steps."""

    def seconds_after(self, step: int) -> float:
        """What is left once `step` steps are done, with the evaluation and save due after it."""

        def left(every_epochs: float) -> int:
            return num_due(step - 1, every_epochs, self._steps_per_epoch, self.target_steps)

        steps = max(0, self.target_steps - step) * self.step.mean
        evaluations = left(self._config.evaluation.every_epochs) * self.evaluation.mean
        return steps + evaluations + left(self._config.checkpoint.every_epochs) * self.save.mean
