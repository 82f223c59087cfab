"""How long a run will still take: steps, evaluations and saves at what they have cost so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.train.due import num_due

_KEPT = 0.9
"""What an interval weighs beside the next one: about ten of them count."""


@dataclass(slots=True)
class _Mean:
    """Seconds of one of some things; the weight of what was added first falls."""

    kept: float
    seconds: float = 0.0
    count: float = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        self.seconds = self.kept * self.seconds + seconds
        self.count = self.kept * self.count + count

    @property
    def value(self) -> float:
        return self.seconds / self.count if self.count else 0.0


@dataclass(kw_only=True, slots=True)
class Eta:
    """Of one process group. Nothing is known before the first log interval."""

    steps_per_epoch: int
    target_steps: int
    evaluation_epochs: float
    """`evaluation.every_epochs`."""
    checkpoint_epochs: float
    _step: _Mean = field(default_factory=lambda: _Mean(_KEPT))
    _evaluation: _Mean = field(default_factory=lambda: _Mean(1.0))
    _save: _Mean = field(default_factory=lambda: _Mean(1.0))

    def stepped(self, num_steps: int, seconds: float) -> None:
        """A log interval took `seconds`, without what came between its steps."""
        self._step.add(seconds, num_steps)

    def evaluated(self, seconds: float) -> None:
        self._evaluation.add(seconds)

    def saved(self, seconds: float) -> None:
        self._save.add(seconds)

    def seconds_after(self, step: int) -> float:
        """What is left once `step` steps are done, those things that are due after it too."""

        def left(every_epochs: float) -> int:
            return num_due(step - 1, every_epochs, self.steps_per_epoch, self.target_steps)

        steps = max(0, self.target_steps - step) * self._step.value
        evaluations = left(self.evaluation_epochs) * self._evaluation.value
        return steps + evaluations + left(self.checkpoint_epochs) * self._save.value
