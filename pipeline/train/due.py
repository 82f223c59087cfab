"""After which steps something is due that comes every so many epochs, and after the last step."""

from __future__ import annotations


def is_due(step: int, every_epochs: float, steps_per_epoch: int, target_steps: int) -> bool:
    """Whether it is due after `step` steps. `every_epochs` 0: after the last one only."""
    if step == target_steps:
        return True
    return every_epochs > 0 and step % _every_steps(every_epochs, steps_per_epoch) == 0


def num_due(step: int, every_epochs: float, steps_per_epoch: int, target_steps: int) -> int:
    """How often it is still due once `step` steps are done."""
    if step >= target_steps:
        return 0
    if every_epochs == 0:
        return 1
    every = _every_steps(every_epochs, steps_per_epoch)
    return target_steps // every - step // every + (target_steps % every > 0)


def _every_steps(every_epochs: float, steps_per_epoch: int) -> int:
    return max(1, round(every_epochs * steps_per_epoch))
