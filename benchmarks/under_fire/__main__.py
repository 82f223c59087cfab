"""Trains 4 ranks for half an hour, with a fault each minute, and says what that has cost.

    python -m benchmarks.under_fire [--minutes 30] [--seconds-between 60] [--seed 2012]
        [--schedule FILE | --write-schedule FILE] [--logs FOLDER] [--json PATH] [-- OPTION …]

The faults are of twelve kinds, each at a random moment of a random rank, by a seed or a file that
replays them. The job is an ordinary one: `python -m launch local` on each of two nodes, which have
a network of their own each and a cable between them, and on a file system of its own; it is started
again whenever it leaves, as a cluster would. At the end it is asked to stop, and is trained once
more to the same step, undisturbed: the weights must be equal, bit for bit. The events of all
attempts must prove that behind them every step is there once, and every sample once an epoch.

It needs root, or user namespaces that are allowed; without them the two nodes are this machine, and
the kinds that need more are left out, and named in the result. Nothing is left of it: processes,
namespaces and mounts end with it.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from benchmarks.measurement import parser, report, shard_synthetic
from benchmarks.under_fire import schedule
from benchmarks.under_fire.faults import cause
from benchmarks.under_fire.figures import figures
from benchmarks.under_fire.goodput import Caused
from benchmarks.under_fire.history import HistoryError, prove
from benchmarks.under_fire.job import Job, JobError
from benchmarks.under_fire.nodes import Nodes, enter_namespaces, run_nodes, small_disk
from benchmarks.under_fire.processes import adopt_orphans, end_descendants
from benchmarks.under_fire.recipe import (
    DISK_BYTES,
    MAX_RESTARTS,
    NUM_TRAIN,
    command,
    options_of,
)
from benchmarks.under_fire.schedule import KINDS, LEAVES_THE_RANKS, NEEDS_NAMESPACES, Fault, Kind
from benchmarks.under_fire.weights import is_equal
from data_prep.shard_set.files import describe
from pipeline.run import checkpoint
from pipeline.run.directory import RunDirectory
from pipeline.run.ending import ExitCode
from pipeline.run.event_log import read_rows

_REPORT_SECONDS = 30.0
_EFFECT_SECONDS = 60.0
"""After that the effect of a fault has come, or does not come any more."""
_LAST_STEPS = 20
"""In these, or more, the job is left alone before it is stopped."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def disturb(job: Job, faults: Sequence[Fault], total_seconds: float, nodes: Nodes) -> list[Caused]:
    """Cause all faults in their time, then stop the job; its launchers have left by then."""
    job.wait_until(lambda: job.step > 0, "at its first step")
    begin = time.monotonic()
    caused: list[Caused] = []
    for number, fault in enumerate(faults, 1):
        job.tend_for(begin + fault.seconds - time.monotonic())
        job.wait_until(partial(is_over, caused[-1:], job), "done with the fault before")
        caused.append(Caused(fault.kind, cause(fault, job, nodes)))
        place = f"{time.monotonic() - begin:.0f} of {total_seconds:.0f} s, step {job.step:,}"
        say(f"{number} of {len(faults)}: {fault.kind}, rank {fault.rank} ({place})")
    job.tend_for(begin + total_seconds - time.monotonic())
    job.wait_until(partial(is_over, caused[-1:], job), "done with the last fault")
    job.wait_until(lambda: job.trains() and job.num_steps() >= _LAST_STEPS, "at its last steps")
    job.run.stop_request.touch()
    leave(job, ExitCode.STOPPED)
    return caused


def is_over(last: Sequence[Caused], job: Job) -> bool:
    """Whether the last fault has had its effect, or has had time enough for one."""
    return all(
        fault.kind in LEAVES_THE_RANKS
        or job.has_begun_since(fault.time)
        or time.time() > fault.time + _EFFECT_SECONDS
        for fault in last
    )


def leave(job: Job, expected: ExitCode) -> None:
    """Wait until all launchers have left; raises `JobError` if one did with another exit code."""
    said = time.monotonic()

    def has_left() -> bool:
        nonlocal said
        if time.monotonic() > said + _REPORT_SECONDS:
            said = time.monotonic()
            say(f"{job.run.name}: step {job.step:,}")
        return job.has_left()

    job.wait_until(has_left, "at its end", restarts=False)
    if set(job.exit_codes) != {expected}:
        raise JobError(f"{job.run.name} has left with {job.exit_codes}, expected {expected:d}")


def train(
    faults: Sequence[Fault],
    total_seconds: float,
    training: Mapping[str, object],
    nodes: Nodes,
    disk: Path,
    shards: Path,
) -> dict[str, Any]:
    run, undisturbed = RunDirectory(disk / "under-fire"), RunDirectory(disk / "undisturbed")
    job = Job(nodes, run, command(shards, run.path, training), MAX_RESTARTS)
    caused = disturb(job, faults, total_seconds, nodes)
    newest = checkpoint.newest_good(run.checkpoints)
    assert newest is not None
    step, seed = checkpoint.step_of(newest), int(str(training["seed"]))
    history = prove(read_rows(run.events), step, seed)
    say(f"{step:,} steps, each of them once; now the same without faults")
    again = command(shards, undisturbed.path, {**training, "max-steps": step})
    quiet = Job(nodes, undisturbed, again, 0)
    leave(quiet, ExitCode.DONE)
    return figures(
        faults,
        caused,
        training,
        history,
        prove(read_rows(undisturbed.events), step, seed),
        is_equal=is_equal(run, undisturbed, step),
        num_launches=job.num_starts,
    )


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--minutes", type=_positive, default=30.0)
    made.add_argument("--seconds-between", type=_positive, metavar="S", help="between faults; 60")
    made.add_argument("--seed", type=int, help="of the schedule; 2012")
    made.add_argument("--schedule", type=Path, metavar="FILE", help="the faults to cause")
    made.add_argument("--write-schedule", type=Path, metavar="FILE", help="also write them there")
    made.add_argument("--logs", type=Path, metavar="FOLDER", help="keep events and logs there")
    text = "of training, behind a --, in addition or instead: --distributed.warm_restarts 1000"
    made.add_argument("training", nargs="*", metavar="OPTION", help=text)
    options = made.parse_args(arguments)
    if options.schedule and not (options.seed is None and options.seconds_between is None):
        made.error("--schedule has the faults: leave out --seed and --seconds-between")
    return options


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no positive number")
    return number


def faults_of(options: argparse.Namespace, kinds: Sequence[Kind]) -> list[Fault]:
    """Raises `OSError`, and `ValueError` if there is nothing to replay."""
    total_seconds = 60 * options.minutes
    if options.schedule:
        return schedule.read(options.schedule, kinds, total_seconds)
    seed = 2012 if options.seed is None else options.seed
    return schedule.draw(seed, kinds, total_seconds, options.seconds_between or 60.0)


def main() -> int:
    options = parsed()
    is_apart = enter_namespaces()
    left_out = [] if is_apart else [*NEEDS_NAMESPACES]
    if left_out:
        say(f"no right to make namespaces: without {' and '.join(left_out)}")
    try:
        faults = faults_of(options, [kind for kind in KINDS if kind not in left_out])
        training = options_of(options.training)
        command(Path("shards"), Path("run"), training)  # what is wrong with it is said at once
        if options.write_schedule:
            schedule.write(options.write_schedule, faults)
    except (OSError, ValueError) as error:
        say(f"error: {describe(error)}")
        return ExitCode.FAILED
    signal.signal(signal.SIGTERM, _terminate)
    adopt_orphans()
    with contextlib.ExitStack() as resources:
        root = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="under-fire-")))
        os.environ["TMPDIR"] = str(root)  # what is killed leaves its temporary files there
        disk = root / "disk"
        disk.mkdir()
        nodes = Nodes()
        if is_apart:
            resources.enter_context(small_disk(disk, DISK_BYTES))
            nodes = resources.enter_context(run_nodes())
        resources.callback(end_descendants, nodes.pids)
        if options.logs:
            resources.callback(keep, disk, options.logs)
        shards = shard_synthetic(root / "shards", num_train=NUM_TRAIN, num_val=64)
        try:
            found = train(faults, 60 * options.minutes, training, nodes, disk, shards)
        except (HistoryError, JobError) as error:
            say(f"error: {error}")
            return ExitCode.FAILED
    report(found | {"left_out": left_out}, options.json)
    return ExitCode.DONE if found["weights_are_equal"] else ExitCode.FAILED


def _terminate(number: int, _: FrameType | None) -> NoReturn:
    """What was begun is ended on the way out, and no second signal comes between."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def keep(disk: Path, folder: Path) -> None:
    """What says how the runs on the disk went."""
    for path in (*disk.glob("*/events.jsonl"), *disk.glob("*/logs/*"), *disk.glob("*/hangs/*")):
        place = folder / path.relative_to(disk)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


if __name__ == "__main__":
    sys.exit(main())
