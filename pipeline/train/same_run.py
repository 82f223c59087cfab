"""Whether the run in a directory may go on as the one that was asked for."""

from __future__ import annotations

from pipeline.config.schema import Config, Precision
from pipeline.data.open import num_steps, steps_of_epoch
from pipeline.optim.schedule import Position, Rates, learning_rates
from pipeline.run import checkpoint
from pipeline.run.directory import RunDirectory
from pipeline.run.settings import Settings, read_saved
from pipeline.train.due import is_due


def kept_precision(run: RunDirectory) -> Precision | None:
    """The precision of the run that goes on in the directory; None if there is no run yet.

    Raises `ValueError` if `config.json` is damaged.
    """
    saved = read_saved(run) if run.config.exists() else None
    if saved is None or not checkpoint.paths(run.checkpoints):
        return None
    found: Precision | None = saved["config"].get("precision")
    return found


def check_same_run(
    run: RunDirectory, settings: Settings, *, num_samples: int, fork_from: str | None = None
) -> None:
    """Raise `ValueError` if the run directory is that of a run that computes something else.

    Without a checkpoint it is not: a mistake that ends its first steps can be mended.
    `num_samples` are those of an epoch, `fork_from` is the option.
    """
    saved = read_saved(run) if run.config.exists() else None
    paths = checkpoint.paths(run.checkpoints)
    if saved is None or not paths:
        return
    settings.check_continues(saved, run.path)
    config, was_epochs = settings.config, saved["config"]["epochs"]
    steps_per_epoch = steps_of_epoch(
        num_samples, config.global_batch_size, drop_last=config.data.drop_last
    )
    reason = why_not(config, was_epochs, steps_per_epoch, checkpoint.step_of(paths[0]))
    if reason is not None:
        raise ValueError(
            f"{run.path} belongs to a run of {was_epochs:g} epochs, which cannot become one of "
            f"{config.epochs:g}: {reason}; start a new run from its weights with "
            f"--fork-from {run.path} and another --run-dir"
        )
    began = (saved.get("forked_from") or {}).get("source")
    if fork_from is not None and fork_from != began:
        raise ValueError(
            f"{run.path} is a run that began {f'at {began}' if began else 'with fresh weights'}, "
            f"and --fork-from is {fork_from}: give another --run-dir for a new run"
        )


def why_not(config: Config, was_epochs: float, steps_per_epoch: int, done: int) -> str | None:
    """Why a run that was to last `was_epochs` cannot last `config.epochs`; None if it can.

    It can if the `done` steps had the learning rates that a run of the new length has, and, for a
    schedule that looks at evaluations, if these came after the same steps.
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
