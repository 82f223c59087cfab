"""`python -m launch status|stop|logs RUN`: looks at a run and asks it to stop, from its files."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from data_prep.shard_set.fields import at_least
from data_prep.shard_set.files import as_command
from data_prep.shard_set.options import Named
from data_prep.shard_set.streams import say
from pipeline.explain import slurm
from pipeline.explain.evidence import Evidence
from pipeline.explain.explain import explain, explained, ledger_until
from pipeline.explain.explanation import Explanation
from pipeline.metrics.outcomes import AT_WORK, RunStatus
from pipeline.run.console import counted, duration
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import (
    history_of,
    of_training,
    of_type,
    own_evaluations,
    read_rows,
)
from pipeline.run.events import CheckpointEvent, EndEvent, Event, RunEvent, TrainEvent
from pipeline.run.ledger import SECOND_CLASSES, Ledger
from pipeline.run.lock import log_at_work

_LEAST_SHARE = 0.0005
"""Of all time; less would be told as 0.0 %."""


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
    rows = list(read_rows(run.events, faults))
    seen = Evidence.read(run, rows, time.time(), asks=True)
    told = explained(seen)
    found = describe(run, history_of(rows), seen.status, told)
    if ledger := ledger_until(seen, told.state):
        found["time"] = describe_ledger(ledger)
    if seen.job_number is not None:
        found["SLURM"] = f"job {seen.job_number}: {_describe_job(seen.job, seen.status)}"
    if faults:
        found["faults"] = f"{run.events}, {faults[0]}; {len(faults)} in all"
    if run.hangs.is_dir():
        found["hangs"] = f"stacks of one that hung are in {run.hangs}"
    if told.state in ("failed", "was killed"):
        command = as_command("python", "-m", "launch", "explain", run.path)
        found["explain"] = f"{command} says why, and what to do"
    for name, value in found.items():
        say(f"{name:12} {value}")


def describe(
    run: RunDirectory, events: list[Event], run_status: RunStatus, told: Explanation
) -> dict[str, str]:
    """What is known of a run, a line each."""
    state, now = str(told.state), told.now
    rows = of_training(events)
    if not rows:
        return {"state": state}
    for end in of_type(rows, EndEvent)[-1:]:
        if state == "failed" and end.error is not None:
            is_lost = end.cause == "lost_rank" and told.cause is not None
            state += f": {told.cause.text if is_lost and told.cause else end.error}"
    found = {"state": state, "last event": f"{max(0, now - rows[-1].time):.0f} s ago"}
    step = max(row.step for row in rows)
    for start in of_type(rows, RunEvent)[-1:]:
        target = start.target_steps
        if state == "training":
            step = max(step, run_status.step)
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
        found["checkpoint"] = f"{path}, {max(0, now - saved.time):.0f} s old"
    return found


def describe_ledger(ledger: Ledger) -> str:
    """The share of the time that was steps, and what the rest was."""
    total = ledger.total_seconds or 1.0
    shares = {name: seconds / total for name, seconds in ledger.seconds.items()}
    rest = sorted((n for n in SECOND_CLASSES if n != "steps"), key=lambda name: -shares[name])
    attempts = counted(ledger.num_attempts, "attempt")
    parts = [f"goodput {ledger.goodput:.1%} of {duration(ledger.total_seconds)} in {attempts}"]
    parts += [f"{SECOND_CLASSES[n]} {shares[n]:.1%}" for n in rest if shares[n] >= _LEAST_SHARE]
    return ", ".join(parts) + ("" if ledger.is_queue_known else "; time in a queue is not known")


def stop(options: StopOptions) -> None:
    """Raises `ValueError` if the run's last job has ended, or has not begun."""
    run = existing(options.run_dir)
    rows = list(read_rows(run.events))
    state = explain(run, events=rows).state
    if state == "queued":
        job = slurm.last_job(run, rows)
        raise ValueError(f"job {job} of {run.path} has not begun: end it with 'scancel {job}'")
    if state not in AT_WORK:
        raise ValueError(f"{run.path} is not being trained: it {state}")
    run.stop_request.touch()
    say(f"{run.path} will save and leave after one of its next steps")


def logs(options: LogOptions) -> None:
    """Show the end of the log of the job at work, or the newest; raises `ValueError` without any.

    A newer one than the first may be that of a start that was refused.
    """
    run = existing(options.run_dir)
    found = log_at_work(run) or run.newest_log
    if found is None:
        raise ValueError(
            f"{run.path} has no logs: jobs that 'python -m launch' starts leave them there"
        )
    say(f"{found}")
    follow = ["-F"] if options.follow else []
    words = ["tail", f"--lines={options.lines}", *follow, "--", str(found)]
    if not sys.stdout.isatty():
        os.execvp(words[0], words)  # noqa: S606 - no name in the words reaches a shell
    with subprocess.Popen(words, stdout=subprocess.PIPE) as tail:
        assert tail.stdout is not None
        for line in tail.stdout:  # what a job has written may give orders to a terminal
            shown = line.decode(errors="replace").rstrip("\r\n").rpartition("\r")[2]
            say(shown.expandtabs())


def _describe_job(found: slurm.SlurmJob | None, run_status: RunStatus) -> str:
    if found is None:
        return "SLURM does not know it, or is not on this host"
    if found.state == "PENDING":
        return f"PENDING: {found.wait}"
    if found.state == "FAILED" and run_status.outcome == "stopped":
        return "ended, as the run was stopped"  # its exit code is a failure to SLURM
    return " on ".join(filter(None, (found.state, found.nodes)))


def existing(path: Path) -> RunDirectory:
    run = RunDirectory(path)
    if not run.has_begun:
        raise ValueError(f"{path} is not a run directory: give the --run-dir of a training")
    return run
