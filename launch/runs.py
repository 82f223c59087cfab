"""`python -m launch status|stop|logs RUN`: looks at a run and asks it to stop, from its files."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from data_prep.files import path_option
from pipeline.events import Event, read_events
from pipeline.run_directory import RunDirectory
from pipeline.run_lock import is_locked

_AT_WORK = ("starting", "training")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=path_option, metavar="RUN")


def add_log_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)
    parser.add_argument("--lines", type=int, default=50, help="default: the last %(default)s")
    parser.add_argument("--follow", action="store_true", help="and what comes, until Ctrl-C")


def status(options: argparse.Namespace) -> None:
    """Print how far the run is. Raises `ValueError` if there is none."""
    run = _existing(options.run_dir)
    events = read_events(run.events) if run.events.is_file() else []
    for name, value in describe(events, time.time(), is_at_work=is_locked(run)).items():
        sys.stdout.write(f"{name:12} {value}\n")
    job = slurm_job(run)
    if job is not None:
        sys.stdout.write(f"{'SLURM':12} job {job}: {_state_in_slurm(job)}\n")
    if run.hangs.is_dir():
        sys.stdout.write(f"{'hangs':12} stacks of one that hung are in {run.hangs}\n")


def describe(events: list[Event], now: float, *, is_at_work: bool) -> dict[str, str]:
    """What the events say of a run, a line each; `now` is in Unix seconds."""
    state = _state(events, is_at_work=is_at_work)
    if not events:
        return {"state": state}
    last: dict[str, Any] = {row["kind"]: row for row in events}
    if "error" in events[-1]:
        state += f": {events[-1]['error']}"
    found = {"state": state, "last event": f"{now - events[-1]['time']:.0f} s ago"}
    if "run" in last:
        target = last["run"]["target_steps"]
        step = max(row["step"] for row in events)
        found["step"] = (
            f"{step:,} of {target:,} ({step / target:.1%}), on {last['run']['world_size']} ranks"
        )
    if "train" in last:
        row = last["train"]
        loss = "not a number" if row["loss"] is None else f"{row['loss']:.4f}"
        found["training"] = (
            f"loss {loss}, top-1 {row['top1']:.2%}, {row['images_per_second']:,.0f} images/s, "
            f"{row['data_wait_ratio']:.1%} of the time waiting for data"
        )
    if "eval" in last:
        row = last["eval"]
        found["evaluation"] = (
            f"{row['split']} top-1 {row['top1']:.2%}, top-5 {row['top5']:.2%}, "
            f"after step {row['step']:,}"
        )
    if "checkpoint" in last:
        row = last["checkpoint"]
        found["checkpoint"] = f"{row['path']}, {now - row['time']:.0f} s old"
    return found


def stop(options: argparse.Namespace) -> None:
    """Raises `ValueError` if the run's last job has ended, or has not begun."""
    run = _existing(options.run_dir)
    events = read_events(run.events) if run.events.is_file() else []
    job = slurm_job(run)
    in_slurm = "" if job is None else _state_in_slurm(job)
    found = _state(events, is_at_work=is_locked(run))
    if found not in _AT_WORK and in_slurm.startswith("PENDING"):
        raise ValueError(f"job {job} of {run.path} has not begun: end it with 'scancel {job}'")
    if found not in _AT_WORK and not in_slurm.startswith("RUNNING"):
        raise ValueError(f"{run.path} is not being trained: it {found}")
    run.stop_request.touch()
    sys.stdout.write(f"{run.path} will save and leave after one of its next steps\n")


def _state(events: list[Event], *, is_at_work: bool) -> str:
    if events and events[-1]["kind"] == "end":
        return str(events[-1]["outcome"])
    if is_at_work:
        return _AT_WORK[bool(events)]
    return "was killed" if events else "has not started"


def logs(options: argparse.Namespace) -> None:
    """Become `tail` on the newest log. Raises `ValueError` if there is none."""
    run = _existing(options.run_dir)
    found = newest_log(run)
    if found is None:
        raise ValueError(
            f"{run.path} has no logs: jobs that 'python -m launch' starts leave them there"
        )
    sys.stdout.write(f"{found}\n")
    sys.stdout.flush()
    follow = ["-F"] if options.follow else []
    os.execvp("tail", ["tail", f"--lines={options.lines}", *follow, "--", str(found)])


def newest_log(run: RunDirectory) -> Path | None:
    return max(run.logs.glob("*.log"), key=lambda path: path.stat().st_mtime, default=None)


def slurm_job(run: RunDirectory) -> str | None:
    """The number of the last job that was submitted for the run."""
    numbers = [path.stem.removeprefix("slurm-") for path in run.logs.glob("slurm-*.log")]
    return max((number for number in numbers if number.isdecimal()), key=int, default=None)


def _state_in_slurm(job: str) -> str:
    if shutil.which("squeue") is None:
        return "SLURM is not on this host"
    command = ["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T %r %N"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "not in the queue"


def _existing(path: Path) -> RunDirectory:
    run = RunDirectory(path)
    if not (run.config.is_file() or run.logs.is_dir()):
        raise ValueError(f"{path} is not a run directory: give the --run-dir of a training")
    return run
