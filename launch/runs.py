"""`python -m launch status|stop|logs RUN`: looks at a run and asks it to stop, from its files."""

from __future__ import annotations

import math
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from data_prep.shard_set.fields import at_least
from data_prep.shard_set.options import Named
from pipeline.metrics.declared import GLOBAL_STEP
from pipeline.metrics.outcomes import AT_WORK, RunStatus, read_run_status, state_of
from pipeline.run.console import counted
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import (
    history_of,
    of_training,
    of_type,
    own_evaluations,
    read_events,
    read_rows,
)
from pipeline.run.events import CheckpointEvent, EndEvent, Event, RunEvent, TrainEvent
from pipeline.run.lock import log_at_work


@dataclass(frozen=True, kw_only=True, slots=True)
class StatusOptions:
    """Say how far a run is, from its files."""

    run_dir: Annotated[Path, Named("RUN")]
    """The run's directory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StopOptions(StatusOptions):
    """Ask a run to save and leave, by a file in its directory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogOptions(StatusOptions):
    """Show the log of a run's job: the one at work, or the newest."""

    lines: Annotated[int, at_least(1)] = 50
    """How many of the last lines to show."""
    follow: bool = False
    """Also show new lines as they come, until Ctrl-C."""


def status(options: StatusOptions) -> None:
    """Print how far the run is. Raises `ValueError` if there is none."""
    run = existing(options.run_dir)
    faults: list[str] = []
    events = history_of(read_rows(run.events, faults))
    now = time.time()
    run_status = read_run_status(run, socket.gethostname(), now)
    found = describe(run, events, run_status, now)
    if job := slurm_job(run):
        found["SLURM"] = f"job {job}: {_describe_job(job, run_status)}"
    if faults:
        found["faults"] = f"{run.events}, {faults[0]}; {len(faults)} in all"
    if run.hangs.is_dir():
        found["hangs"] = f"stacks of one that hung are in {run.hangs}"
    for name, value in found.items():
        sys.stdout.write(f"{name:12} {value}\n")


def describe(
    run: RunDirectory, events: list[Event], run_status: RunStatus, now: float
) -> dict[str, str]:
    """What is known of a run, a line each; `now` is in Unix seconds."""
    state: str = state_of(run_status, of_type(events, RunEvent))
    rows = of_training(events)
    if not rows:
        return {"state": state}
    for end in of_type(rows, EndEvent)[-1:]:
        if state == "failed" and end.error is not None:
            is_lost = end.cause == "lost_rank"
            state += f": {_lost_ranks(end.error, run_status, now) if is_lost else end.error}"
    found = {"state": state, "last event": f"{now - rows[-1].time:.0f} s ago"}
    step = max(row.step for row in rows)
    for start in of_type(rows, RunEvent)[-1:]:
        target = start.target_steps
        if state == "training":
            step = max(step, _published_step(run_status))
        found["step"] = (
            f"{step:,} of {target:,} ({step / target:.1%}), on {counted(start.world_size, 'rank')}"
        )
    for row in of_type(rows, TrainEvent)[-1:]:
        loss = f"{row.loss:.4f}" if math.isfinite(row.loss) else "not a number"
        found["training"] = (
            f"loss {loss}, top-1 {row.top1:.2%}, {row.images_per_second:,.0f} images/s, "
            f"{row.data_wait_ratio:.1%} of the time waiting for data"
            + ("" if row.step == step else f", at step {row.step:,}")
        )
    for result in own_evaluations(events)[-1:]:
        top5 = "" if result.top5 is None else f", top-5 {result.top5:.2%}"
        views = f" of {result.views} views" if (result.views or 1) > 1 else ""
        found["evaluation"] = (
            f"{result.split} top-1 {result.top1:.2%}{top5}{views}, after step {result.step:,}"
        )
    for saved in of_type(rows, CheckpointEvent)[-1:]:
        path = run.checkpoints / Path(saved.path).name  # the run may have been moved or copied
        found["checkpoint"] = f"{path}, {now - saved.time:.0f} s old"
    return found


def _lost_ranks(error: str, run_status: RunStatus, now: float) -> str:
    """The ranks that are gone, of a run that failed with this `error` because of them."""
    host = socket.gethostname()
    ranks = [rank for rank in run_status.ranks if rank.outcome(host, now) == "killed"]
    killed = [str(rank.writer.rank) for rank in ranks]
    are = "rank {} was" if len(killed) == 1 else "ranks {} were"
    return f"{are.format(', '.join(killed))} killed" if killed else error.partition(" (")[0]


def _published_step(run_status: RunStatus) -> int:
    """The step that rank 0 was at seconds ago; the events have only those of log intervals."""
    families = (family for rank in run_status.ranks for family in rank.families)
    steps = [family.samples[0].value for family in families if family.name == GLOBAL_STEP.name]
    return int(max(steps, default=0))


def stop(options: StopOptions) -> None:
    """Raises `ValueError` if the run's last job has ended, or has not begun."""
    run = existing(options.run_dir)
    events = read_events(run.events)
    job = slurm_job(run)
    in_slurm = None if job is None else _look_into_slurm(job)
    state_in_slurm = "" if in_slurm is None else in_slurm[0]
    run_status = read_run_status(run, socket.gethostname(), time.time())
    found = state_of(run_status, of_type(events, RunEvent))
    if found not in AT_WORK and state_in_slurm == "PENDING":
        raise ValueError(f"job {job} of {run.path} has not begun: end it with 'scancel {job}'")
    if found not in AT_WORK and state_in_slurm != "RUNNING":
        raise ValueError(f"{run.path} is not being trained: it {found}")
    run.stop_request.touch()
    sys.stdout.write(f"{run.path} will save and leave after one of its next steps\n")


def logs(options: LogOptions) -> None:
    """Become `tail` on the log of the job at work, or the newest; raises `ValueError` without any.

    A newer one than the first may be that of a start that was refused.
    """
    run = existing(options.run_dir)
    found = log_at_work(run) or run.newest_log
    if found is None:
        raise ValueError(
            f"{run.path} has no logs: jobs that 'python -m launch' starts leave them there"
        )
    sys.stdout.write(f"{found}\n")
    sys.stdout.flush()
    follow = ["-F"] if options.follow else []
    os.execvp("tail", ["tail", f"--lines={options.lines}", *follow, "--", str(found)])


def slurm_job(run: RunDirectory) -> str | None:
    """The number of the last job that was submitted for the run."""
    numbers = [path.stem.removeprefix("slurm-") for path in run.logs.glob("slurm-*.log")]
    return max((number for number in numbers if number.isdecimal()), key=int, default=None)


def _look_into_slurm(job: str) -> tuple[str, str, str] | None:
    """A job's state, its reason and nodes, empty if squeue has none; None without SLURM here."""
    if shutil.which("squeue") is None:
        return None
    command = ["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T|%r|%N"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    state, reason, nodes = done.stdout.strip().split("|") if done.stdout.strip() else ("", "", "")
    return state, reason, nodes


def _describe_job(job: str, run_status: RunStatus) -> str:
    found = _look_into_slurm(job)
    if found is None:
        return "SLURM is not on this host"
    state, reason, nodes = found
    if state == "PENDING":
        return f"PENDING ({reason})"
    if state == "FAILED" and run_status.outcome == "stopped":
        return "ended, as the run was stopped"  # its exit code is a failure to SLURM
    return " on ".join(filter(None, (state, nodes))) or "not in the queue"


def existing(path: Path) -> RunDirectory:
    run = RunDirectory(path)
    if not run.has_begun:
        raise ValueError(f"{path} is not a run directory: give the --run-dir of a training")
    return run
