"""Whether a run directory is that of the run that is to go on in it."""

from __future__ import annotations

from typing import get_args

from pipeline.config.schema import Precision
from pipeline.data.open import steps_of_epoch
from pipeline.run import checkpoint
from pipeline.run.directory import RunDirectory
from pipeline.run.settings import Settings, read_saved
from pipeline.train.length import why_not


def kept_precision(run: RunDirectory) -> Precision | None:
    """The precision of the run that goes on in the directory; None if there is no run yet.

    Raises `ValueError` if `config.json` is damaged.
    """
    saved = read_saved(run)
    if saved is None or not checkpoint.paths(run.checkpoints):
        return None
    found = saved["config"].get("precision")
    return next((known for known in get_args(Precision) if known == found), None)


def check_same_run(
    run: RunDirectory, settings: Settings, *, num_samples: int, fork_from: str | None = None
) -> None:
    """Raise `ValueError` if the run directory is that of a run that computes something else.

    One without a checkpoint is that of no run yet: a mistake that ends its first steps can be
    mended. `num_samples` are those of an epoch, `fork_from` is the option.
    """
    saved, paths = read_saved(run), checkpoint.paths(run.checkpoints)
    if saved is None or not paths:
        return
    settings.check_continues(saved, run.path)
    config, was_epochs = settings.config, saved["config"]["epochs"]
    steps_per_epoch = steps_of_epoch(
        num_samples, config.global_batch_size, drop_last=config.data.drop_last
    )
    done = checkpoint.step_of(paths[0])
    reason = why_not(config, was_epochs, steps_per_epoch, done)
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
