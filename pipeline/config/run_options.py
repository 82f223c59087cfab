"""The options of training that are no fields of its config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from data_prep.shard_set.fields import at_least, fields_of
from data_prep.shard_set.options import Named


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """Where a run goes, how far, and where it begins."""

    run_dir: Annotated[str, Named("--run-dir", "RUN")]
    """The directory that this run's files go to; the same command goes on from what is there."""
    max_steps: Annotated[int | None, at_least(1), Named("--max-steps", "N")] = None
    """End once N steps are done in the life of the run; the schedule stays that of all epochs."""
    fork_from: Annotated[str | None, Named("--fork-from", "RUN[@CHECKPOINT]")] = None
    """Begin at a checkpoint of another run (newest, best or a step), with other options if need
    be: in its epoch, with its weights, and its optimizer's state if that fits."""


RUN_OPTIONS = fields_of(RunOptions)
