"""Where a run begins: with fresh weights, at its newest checkpoint, or at one of another run."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.open import BatchPlan
from pipeline.metrics.rank_file import last_heartbeat
from pipeline.optim.replica import Replica
from pipeline.ranks.stop import begin_of_attempt
from pipeline.ranks.world import World
from pipeline.run import checkpoint
from pipeline.run.directory import ForkSource, RunDirectory
from pipeline.run.ending import EndOutcome
from pipeline.run.event_log import (
    append,
    last_of_training,
    write_last_word,
    write_submission,
)
from pipeline.run.events import StartEvent
from pipeline.run.settings import Settings, read_saved, saved_settings
from pipeline.train.fork import fork
from pipeline.train.progress import Progress
from pipeline.train.survival import Memory, Survivors


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """What there is to begin with, as rank 0 sees it."""

    path: Path | None
    """The newest good checkpoint of the run itself."""
    forked_from: Mapping[str, Any] | None
    """Of `Settings`: what the run began at, or begins at now if it has no checkpoint yet."""
    initialized_from: Mapping[str, Any] | None = None
    """Of `Settings`: what a run that has begun before began with."""
    survivors: Survivors | None = None
    """The ranks that have the run in memory: then no checkpoint is needed."""

    @property
    def step(self) -> int | None:
        """Of the run itself, from which it goes on; None: it begins."""
        if self.survivors is not None:
            return self.survivors.moment.step
        return None if self.path is None else checkpoint.step_of(self.path)

    @property
    def is_fresh(self) -> bool:
        """Whether the run begins now, and at no checkpoint."""
        return self.step is None and self.forked_from is None

    @property
    def fork(self) -> Path | None:
        """The checkpoint of another run that this one begins at now."""
        if self.step is not None or self.forked_from is None:
            return None
        return Path(self.forked_from["checkpoint"])


def find_start(
    run: RunDirectory, source: ForkSource | None, world: World, survivors: Survivors | None = None
) -> Start:
    """Raises `ValueError` if the `source` has no such checkpoint; the ranks call it together."""
    start = None
    with world.fail_together():
        if world.is_main:
            path = None if survivors else checkpoint.newest_good(run.checkpoints)
            has_begun = path is not None or survivors is not None
            saved = read_saved(run) if has_begun and run.config.exists() else {}
            forked_from = saved.get("forked_from")
            if not has_begun and source is not None:
                forked_from = {"source": str(source), "checkpoint": str(_found(source, run))}
            start = Start(
                path=path,
                forked_from=forked_from,
                initialized_from=saved.get("initialized_from"),
                survivors=survivors,
            )
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


def record_start(run: RunDirectory, start: Start, plan: BatchPlan, world: World) -> None:
    """Write the `start` row on rank 0, before any rank publishes; a full disk costs the row.

    A job that SLURM has requeued has waited in its queue since it was last heard of.
    """
    if not world.is_main:
        return
    heard, environment = last_heartbeat(run.metrics), world.environment
    last, job = last_of_training(run.events), environment.start
    is_first = environment.attempt == 0 and environment.began is None
    if last is not None and job is not None and job.number > 0 and is_first:
        write_submission(run.events, "slurm", job.job, max(last.time, heard or 0.0))
    step = start.step or 0
    event = StartEvent(
        step=step,
        epoch=step / plan.steps_per_epoch,
        began=begin_of_attempt(environment),
        heard=heard,
    )
    with contextlib.suppress(OSError):
        append(run.events, event)


def finish(run: RunDirectory, path: Path, world: World, plan: BatchPlan, target_steps: int) -> int:
    """Do what a kill may have left undone after the last step; returns the steps done."""
    step = checkpoint.step_of(path)
    with world.fail_together():
        if world.is_main:
            marked = Progress(**checkpoint.load(path)["progress"]).marked
            if marked is not None:
                checkpoint.mark_best(run.checkpoints, marked[0])
            outcome: EndOutcome = "completed" if step >= target_steps else "stopped"
            with contextlib.suppress(OSError):  # a full disk costs the row
                write_last_word(run.events, step, step / plan.steps_per_epoch, outcome)
    return step


def begin(
    start: Start,
    replica: Replica,
    settings: Settings,
    num_classes: int,
    plan: BatchPlan,
    target_steps: int,
    run: RunDirectory,
    world: World,
    memory: Memory,
) -> Progress:
    """Bring the fresh `replica` to the `start`; see `resume` and `fork`."""
    if start.survivors is not None:
        progress = start.survivors.adopt(memory, replica, world, replica.mesh)
        return _with_best(progress, run, world)
    memory.forget()  # it is of another step, after which other things are due
    if start.path is not None:
        return resume(replica, settings, run, world, start.path)
    if start.fork is not None:
        return fork(replica, settings, num_classes, plan, target_steps, world, start.fork)
    return Progress()


def resume(
    replica: Replica, settings: Settings, run: RunDirectory, world: World, path: Path
) -> Progress:
    """Go on from the run's own checkpoint `path`."""
    with world.fail_together():
        state = checkpoint.load(path, world.device)
        settings.check_continues(saved_settings(state, path), path)
        replica.load_state_dict(state)
    return _with_best(Progress(**state["progress"]), run, world)


def _with_best(progress: Progress, run: RunDirectory, world: World) -> Progress:
    """Let the checkpoints of the run be those up to `progress`."""
    has_best = False
    with world.fail_together():
        if world.is_main:
            checkpoint.set_aside_later(run.checkpoints, progress.step)
            if progress.marked is not None:  # a kill may have come before the mark
                has_best = checkpoint.mark_best(run.checkpoints, progress.marked[0])
    if not world.broadcast_object(has_best):
        progress.marked = None  # its checkpoint is lost: the next evaluation gives another
    return progress
