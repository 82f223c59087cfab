"""Whether a run may become longer or shorter: only if what it has done stays what it is."""

from __future__ import annotations

from pipeline.config.schema import Config
from pipeline.optim.schedule import Position, Rates, learning_rates
from pipeline.train.due import is_due


def num_steps(epochs: float, steps_per_epoch: int) -> int:
    """Steps of a whole run, rounded."""
    return round(epochs * steps_per_epoch)


def num_steps_of_run(epochs: float, steps_per_epoch: int) -> int:
    """Steps of a run of `epochs`; raises `ValueError` if there is none."""
    steps = num_steps(epochs, steps_per_epoch)
    if steps == 0:
        raise ValueError(
            f"epochs is {epochs:g}, less than half a step: an epoch has "
            f"{steps_per_epoch} steps; give at least {1 / steps_per_epoch:.2g}"
        )
    return steps


def why_not(config: Config, was_epochs: float, steps_per_epoch: int, done: int) -> str | None:
    """Why a run that was to last `was_epochs` cannot last `config.epochs` once `done` steps are
    done; None if it can.

    It can if all learning rates of these steps are those that a run of the new length has, and, for
    a schedule that looks at evaluations, if these came after the same steps.
    """
    was, now = (num_steps(epochs, steps_per_epoch) for epochs in (was_epochs, config.epochs))
    if was == now:
        return None

    def rates(updates: int, target_steps: int, losses: tuple[float, ...] = ()) -> Rates:
        position = Position(
            updates=updates,
            steps_per_epoch=steps_per_epoch,
            target_steps=target_steps,
            losses=losses,
        )
        return learning_rates(config.optim, config.schedule, position)

    for step in range(done):
        if rates(step, was) != rates(step, now):
            return (
                f"the learning rates depend on the length of the run, and step {step + 1:,}, which "
                "is done, had another one"
            )
    if rates(now, now) == rates(now, now, (0.0,) * (now + 1)):
        return None
    every = config.evaluation.every_epochs
    for step in range(1, done + 1):
        if is_due(step, every, steps_per_epoch, was) != is_due(step, every, steps_per_epoch, now):
            return (
                "the learning rates depend on the evaluations, and one of the two lengths has one "
                f"after step {step:,}, which is done"
            )
    return None
