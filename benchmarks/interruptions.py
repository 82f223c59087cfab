"""Interrupt jobs of a real SLURM at random, in every way there is, and compare what they train.

    python -m benchmarks.interruptions [--interruptions 100] [--jobs 4] [--json PATH]

Some jobs train side by side on two nodes of a SLURM made of namespaces (it needs root and Debian's
slurmctld, slurmd, slurm-client and munge). Each run is interrupted again and again, after a random
number of steps, until it is nearly done; then the next one begins. The ways: SIGUSR1 as before the
time limit, `scontrol requeue`, preemption, `scancel` and a new submission, a file STOP and a new
submission, kill -9 of a rank, a rank that is stopped, and the loss of the node. A preemption and a
lost node hit the run beside it too. Every run must end with every step logged once and with the
weights of a run that was never interrupted, bit for bit.

Longer than 250 lines: the ways to interrupt are here, and what must come of each.
"""

from __future__ import annotations

import itertools
import random
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.measurement import parser, report, shard_synthetic, spread
from pipeline.run import checkpoint
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import of_type, read_events, read_rows
from pipeline.run.events import CheckpointEvent, EndEvent, Event, RunEvent, TrainEvent
from tests.integration.slurm_cluster import Cluster, run_cluster

NUM_TRAIN, GLOBAL_BATCH_SIZE, EPOCHS = 4096, 64, 20
NUM_STEPS = NUM_TRAIN // GLOBAL_BATCH_SIZE * EPOCHS
MOST_STEPS = 60
"""After a start, before the next interruption."""
LAST_STEPS = 200
"""In these a run is left alone."""

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
_DEADLINE_SECONDS = 400.0


@dataclass
class Run:
    """A run, and the job that trains it now."""

    cluster: Cluster
    directory: RunDirectory
    shards: Path
    job: str = ""
    stop_seconds: list[float] = field(default_factory=list)
    """From the request to the end of training."""
    start_seconds: list[float] = field(default_factory=list)
    """From SLURM's start of the job to the first step."""

    def submit(self) -> None:
        words: list[object] = ["--gpus-per-node", 0, "--ranks-per-node", 2, "--cpus-per-task", 2]
        words += ["--python", sys.executable, "--time", "4:00:00", "--max-requeues", 1000]
        words += ["--max-restarts", 100, "cifar10", "--data.shards", self.shards]
        words += ["--run-dir", self.directory.path, "--global_batch_size", GLOBAL_BATCH_SIZE]
        words += ["--epochs", EPOCHS, "--log_every_steps", 1, "--evaluation.every_epochs", EPOCHS]
        words += ["--checkpoint.every_epochs", 0.25, "--metrics.enabled", "false"]
        words += ["--distributed.timeout_seconds", 15]
        output = self.cluster.launch("slurm", "train", *words)
        self.job = output.split(": job ")[1].split(",")[0]

    def rows(self) -> list[Event]:
        """All events, those of steps that were done again too."""
        path = self.directory.events
        return list(read_rows(path))

    def last_start(self) -> list[Event]:
        """The events since the ranks last began."""
        rows = self.rows()
        begins = [place for place, row in enumerate(rows) if isinstance(row, RunEvent)]
        return rows[begins[-1] :] if begins else []

    def num_starts(self) -> int:
        return len(of_type(self.rows(), RunEvent))

    def is_late(self) -> bool:
        """Whether it may be done before an interruption has come."""
        rows = self.last_start()
        return bool(rows) and rows[-1].step > NUM_STEPS - LAST_STEPS

    def has_trained(self, num_steps: int) -> bool:
        """Whether it is running and has done `num_steps` since it last started."""
        rows = self.last_start()
        is_on = not of_type(rows, EndEvent) and len(of_type(rows, TrainEvent)) >= num_steps
        return is_on and self.cluster.state(self.job) == "RUNNING"

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.directory.path}, job {self.job}: not {what}")
            time.sleep(0.2)

    def wait_until_over(self) -> None:
        self.wait_until(lambda: self.cluster.state(self.job) in ENDED, "over")

    def node(self) -> str:
        command = ("squeue", "--noheader", f"--jobs={self.job}", "--format=%N")
        return self.cluster.run(*command).strip()

    def signal_a_rank(self, name: str, dice: random.Random) -> None:
        """Ranks are the youngest of the processes that name the run."""
        words = f"python.* -m pipeline.train .*{self.directory.path} "
        pids = self.cluster.run("pgrep", "--full", words, node=self.node()).split()[-2:]
        self.cluster.run("kill", f"-{name}", dice.choice(pids), node=self.node())


def lose_time(run: Run, _: random.Random) -> None:
    run.cluster.run("scancel", "--signal=USR1", "--batch", run.job)


def requeue(run: Run, _: random.Random) -> None:
    run.cluster.run("scontrol", "requeue", run.job)


def preempt(run: Run, _: random.Random) -> None:
    urgent = ("--partition=urgent", f"--nodelist={run.node()}", "--exclusive")
    run.cluster.run("sbatch", *urgent, "--output=/dev/null", "--wrap=sleep 0.5")


def cancel(run: Run, _: random.Random) -> None:
    run.cluster.run("scancel", run.job)
    run.wait_until_over()
    run.submit()


def stop(run: Run, _: random.Random) -> None:
    run.cluster.launch("stop", run.directory.path)
    run.wait_until_over()
    run.submit()


def kill(run: Run, dice: random.Random) -> None:
    run.signal_a_rank("KILL", dice)


def freeze(run: Run, dice: random.Random) -> None:
    run.signal_a_rank("STOP", dice)


def lose_node(run: Run, _: random.Random) -> None:
    node = run.node()
    run.cluster.crash(node)
    run.wait_until(lambda: run.cluster.state(run.job) == "PENDING", "queued again")
    run.cluster.boot(node)


GRACEFUL = (lose_time, requeue, preempt, cancel, stop)
WAYS = (*GRACEFUL, kill, freeze, lose_node)


def disturb(
    run: Run, ways: deque[Callable[..., None]], dice: random.Random, turn: threading.Lock
) -> None:
    """Interrupt the run in the next of these ways while it is at work, and wait until it is done.

    A preemption and the loss of a node hit others too, so one comes at a time.
    """
    run.submit()
    while ways and not run.is_late():
        num_steps = dice.randrange(1, MOST_STEPS)
        run.wait_until(
            lambda: run.has_trained(num_steps) or run.is_late(),  # noqa: B023
            f"at step {num_steps}",
        )
        with turn:
            if not ways or run.is_late() or not run.has_trained(num_steps):
                continue
            way = ways.popleft()
            starts, begin = run.num_starts(), time.time()
            way(run, dice)
        run.wait_until(lambda: run.num_starts() > starts, f"back after {way.__name__}")  # noqa: B023
        measure(run, way, begin)
        sys.stderr.write(f"{run.directory.name}: {way.__name__}, start {run.num_starts()}\n")
    run.wait_until_over()


def measure(run: Run, way: Callable[..., None], begin: float) -> None:
    """Note how long it took to stop, where that was asked for, and to begin again."""
    if way in GRACEFUL:
        ends = [end.time for end in of_type(run.rows(), EndEvent) if end.time > begin]
        run.stop_seconds += [time_of_end - begin for time_of_end in ends[:1]]
    run.wait_until(lambda: bool(of_type(run.last_start(), TrainEvent)), "at work")
    shown = run.cluster.run("scontrol", "show", "job", run.job)
    started = shown.split(" StartTime=")[1].split()[0]
    first = next((row.time for row in of_type(run.last_start(), TrainEvent)), None)
    if first is None or started == "Unknown" or way in (kill, freeze):
        return  # it was hit by another one's interruption; or torchrun started the ranks anew
    seconds = first - datetime.fromisoformat(started).timestamp()
    if seconds > 0:
        run.start_seconds.append(seconds)


def weights(run: Run) -> dict[str, torch.Tensor]:
    path = checkpoint.named(run.directory.checkpoints, "newest")
    model: dict[str, torch.Tensor] = checkpoint.load(path)["model"]
    return model


def is_whole(run: Run) -> bool:
    """Whether the job completed, and its history has every step once."""
    steps = [row.step for row in of_type(read_events(run.directory.events), TrainEvent)]
    is_completed = run.cluster.state(run.job) == "COMPLETED"
    return is_completed and steps == list(range(1, NUM_STEPS + 1))


def figures(cluster: Cluster, root: Path, num_interruptions: int, num_jobs: int) -> dict[str, Any]:
    dice, turn = random.Random(2012), threading.Lock()
    shards = shard_synthetic(root / "shards", num_train=NUM_TRAIN, num_val=256)
    all_ways = list(itertools.islice(itertools.cycle(WAYS), num_interruptions))
    dice.shuffle(all_ways)
    ways, runs = deque(all_ways), [Run(cluster, RunDirectory(root / "run-0"), shards)]
    disturb(runs[0], deque(), dice, turn)

    def keep_disturbing(dice: random.Random) -> None:
        while ways:
            with turn:
                run = Run(cluster, RunDirectory(root / f"run-{len(runs)}"), shards)
                runs.append(run)
            disturb(run, ways, dice, turn)

    with ThreadPoolExecutor(num_jobs) as threads:
        jobs = [
            threads.submit(keep_disturbing, random.Random(dice.random())) for _ in range(num_jobs)
        ]
        for job in jobs:
            job.result()
    expected = weights(runs[0])
    equal = [
        all(torch.equal(found, expected[name]) for name, found in weights(run).items())
        for run in runs[1:]
    ]
    saves = of_type(read_events(runs[0].directory.events), CheckpointEvent)
    begin, end = runs[0].rows()[0].time, runs[0].rows()[-1].time
    return {
        "claim": "however often a job is interrupted, its run loses nothing",
        "interruptions": dict(Counter(way.__name__ for way in all_ways)),
        "starts": [run.num_starts() for run in runs],
        "runs": len(runs) - 1,
        "runs_whole": sum(is_whole(run) for run in runs[1:]),
        "runs_with_equal_weights": sum(equal),
        "steps_of_a_run": NUM_STEPS,
        "seconds_from_request_to_end": spread([x for run in runs for x in run.stop_seconds]),
        "seconds_from_start_of_job_to_first_step": spread(
            [seconds for run in runs for seconds in run.start_seconds]
        ),
        "share_of_undisturbed_run_spent_saving": round(
            sum(save.seconds for save in saves) / (end - begin), 5
        ),
    }


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--interruptions", type=int, default=100)
    options_parser.add_argument("--jobs", type=int, default=4, help="two fit on each node")
    options = options_parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, run_cluster(2) as cluster:
        report(figures(cluster, Path(scratch), options.interruptions, options.jobs), options.json)


if __name__ == "__main__":
    main()
