"""Where a run begins: with fresh weights, at its newest checkpoint, or at one of another run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.optim.replica import Replica
from pipeline.ranks.world import World
from pipeline.run import checkpoint
from pipeline.run.directory import RunDirectory
from pipeline.run.ending import EndOutcome
from pipeline.run.event_log import write_last_word
from pipeline.run.fork_source import ForkSource
from pipeline.run.settings import Settings, forked_from
from pipeline.train.progress import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """What there is to begin with, as rank 0 sees it."""

    path: Path | None
    """The newest good checkpoint of the run itself."""
    forked_from: Mapping[str, Any] | None
    """Of `Settings`: what the run began at, or begins at now if it has no checkpoint yet."""

    @property
    def fork(self) -> Path | None:
        """The checkpoint of another run that this one begins at now."""
        if self.path is not None or self.forked_from is None:
            return None
        return Path(self.forked_from["checkpoint"])


def find_start(run: RunDirectory, source: ForkSource | None, world: World) -> Start:
    """Raises `ValueError` if the `source` has no such checkpoint; the ranks call it together."""
    start = None
    with world.fail_together():
        if world.is_main:
            path = checkpoint.newest_good(run.checkpoints)
            origin = None
            if path is not None:
                origin = forked_from(run)
            elif source is not None:
                origin = {"source": str(source), "checkpoint": str(_found(source, run))}
            start = Start(path=path, forked_from=origin)
    start = world.broadcast_object(start)
    assert start is not None, "rank 0 has found it"
    return start


def _found(source: ForkSource, run: RunDirectory) -> Path:
    directory = source.run.checkpoints
    if not directory.is_dir() or source.run.path.samefile(run.path):
        raise ValueError(
            f"--fork-from {source.run.path} is not another run directory with checkpoints: give "
            "the --run-dir of a training run"
        )
    return checkpoint.named(directory, source.checkpoint)


def finish(
    run: RunDirectory, path: Path, world: World, *, steps_per_epoch: int, target_steps: int
) -> int:
    """Do what a kill may have left undone after the last step; returns the steps done."""
    step = checkpoint.step_of(path)
    with world.fail_together():
        if world.is_main:
            marked = Progress.from_state_dict(checkpoint.load(path)["progress"]).marked
            if marked is not None:
                checkpoint.mark_best(run.checkpoints, marked[0])
            outcome: EndOutcome = "completed" if step >= target_steps else "stopped"
            with contextlib.suppress(OSError):  # a full disk costs the row
                write_last_word(run.events, step, step / steps_per_epoch, outcome)
    return step


def resume(
    replica: Replica, settings: Settings, run: RunDirectory, world: World, path: Path
) -> Progress:
    """Go on from the run's own checkpoint `path`."""
    has_best = False
    with world.fail_together():
        state = checkpoint.load(path, world.device)
        settings.check_continues(json.loads(state["settings"]), path)
        replica.load_state_dict(state)
        progress = Progress.from_state_dict(state["progress"])
        if world.is_main:
            checkpoint.set_aside_later(run.checkpoints, progress.step)
            if progress.marked is not None:  # a kill may have come before the mark
                has_best = checkpoint.mark_best(run.checkpoints, progress.marked[0])
    if not world.broadcast_object(has_best):
        progress.marked = None  # its checkpoint is lost: the next evaluation gives another
    return progress
