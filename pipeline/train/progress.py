"""How far a run is: the fields are in its checkpoints, beside the weights."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True, slots=True)
class Progress:
    """Counted over the whole life of the run, resumes included; the same on every rank."""

    step: int = 0
    """Steps done, skipped ones too: the position in the data."""
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    losses: list[float] = field(default_factory=list)
    """Of the evaluations of `val`, oldest first, for the plateau schedule."""
    best_top1: float | None = None
    best_top5: float | None = None
    """The highest of an evaluation."""
    marked: tuple[int, float] | None = None
    """Step and top-1 of the checkpoint `best`: a better one may not have been saved."""

    @property
    def updates(self) -> int:
        """Steps that were applied: the position in the schedule."""
        return self.step - self.skipped_steps

    def settle_step(self, *, skipped: bool) -> None:
        """Note what became of a step, which may be known only later."""
        self.skipped_steps += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0

    def evaluated(self, *, loss: float, top1: float, top5: float | None) -> bool:
        """Note an evaluation; returns whether its top-1 is above that of the `marked` one."""
        self.losses.append(loss)
        self.best_top1 = top1 if self.best_top1 is None else max(self.best_top1, top1)
        if top5 is not None:
            self.best_top5 = top5 if self.best_top5 is None else max(self.best_top5, top5)
        return self.marked is None or top1 > self.marked[1]
