"""Kill ranks of a job at an exponential rate, and compare with what `launch plan` has predicted.

    python -m benchmarks.planning [--seed 2012] [--json PATH]

A first run, two of whose ranks are killed, gives the constants. From its events alone `launch plan`
says how often the second run should save, and how long it will take under failures whose mean
distance is two and a half restarts. That run is then trained by `launch local` with --max-restarts,
and a rank is killed (-9) at the end of each distance, also while ranks start. Distances are a
stratified sample of the exponential law: as many as failures are expected, each the mean of its
share of the law, in that of many random orders whose sums stay nearest to their expectation. So
few failures do not leave it to chance how many there are. It takes about thirty restarts; on two
cores that nobody else uses, six minutes.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measurement import parser, report, shard_synthetic
from launch.plan import Options, plan_of
from launch.planned import Plan
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import of_type, read_rows
from pipeline.run.events import StartEvent, TrainEvent
from pipeline.run.ledger import ledger_of
from pipeline.run.measured import costs_of

NUM_RANKS, NUM_TRAIN, GLOBAL_BATCH_SIZE = 2, 4096, 128
DISTANCE_IN_RESTARTS = 2.5
"""Mean time between failures."""
WORK_IN_RESTARTS = 16.0
CALIBRATION_STEPS = 60
"""After each start of the first run."""
NUM_ORDERS = 1000
_DEADLINE_SECONDS = 1800.0


def training(shards: Path, epochs: float, save_every: float) -> list[str]:
    """The command of a run but for its directory."""
    words: list[object] = ["cifar10", "--data.shards", shards, "--epochs", f"{epochs:.6f}"]
    words += ["--global_batch_size", GLOBAL_BATCH_SIZE, "--log_every_steps", 2]
    words += ["--checkpoint.every_epochs", f"{save_every:.6f}", "--evaluation.every_epochs", 1]
    words += ["--metrics.exporter", "false", "--metrics.publish_seconds", 0.5]
    return [*map(str, words)]


@contextlib.contextmanager
def job(run: RunDirectory, words: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """`launch local`; it is told to leave at the end of the block, if it is still there."""
    command = [sys.executable, "-m", "launch", "local", f"--nproc={NUM_RANKS}"]
    command += ["--max-restarts=1000", *words, "--run-dir", str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as launcher:
        try:
            yield launcher
        finally:
            launcher.terminate()


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    return []


def kill_a_rank(launcher: subprocess.Popen[bytes], dice: random.Random) -> None:
    """One that is there, or as soon as there is one: torchrun may just start them."""
    while launcher.poll() is None:
        ranks = [rank for agent in children(launcher.pid) for rank in children(agent)]
        if ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(dice.choice(ranks), signal.SIGKILL)
                return
        time.sleep(0.02)


def steps_since_start(run: RunDirectory, starts: int) -> int:
    """Steps that were logged since the start of this number; 0 before it."""
    rows = list(read_rows(run.events))
    begins = [place for place, row in enumerate(rows) if isinstance(row, StartEvent)]
    if len(begins) < starts:
        return 0
    steps = [row.step for row in of_type(rows[begins[-1] :], TrainEvent)]
    return steps[-1] - steps[0] if steps else 0


def calibrate(run: RunDirectory, shards: Path, dice: random.Random) -> None:
    """Train, kill a rank twice, and stop."""
    with job(run, training(shards, 1000, 1)) as launcher:
        for number in (1, 2, 3):
            deadline = time.monotonic() + _DEADLINE_SECONDS
            while steps_since_start(run, number) < CALIBRATION_STEPS:
                assert launcher.poll() is None, "the job has ended"
                assert time.monotonic() < deadline, f"no steps after start {number}"
                time.sleep(0.1)
            if number < 3:
                kill_a_rank(launcher, dice)
        run.stop_request.touch()
        launcher.wait(_DEADLINE_SECONDS)


def distances(number: int, mean: float, dice: random.Random) -> Iterator[float]:
    """The means of `number` equal shares of the exponential law, again and again, in one order."""

    def upper(share: float) -> float:
        """Of the integral of x times the density, behind the quantile of `share`."""
        return (1 - share) * (1 - math.log(1 - share)) if share < 1 else 0.0

    edges = [upper(edge / number) for edge in range(number + 1)]
    found = [mean * number * (low - high) for low, high in itertools.pairwise(edges)]

    def strays(order: Iterable[float]) -> float:
        sums = enumerate(itertools.accumulate(order), 1)
        return max(abs(total - place * mean) for place, total in sums)

    orders = [dice.sample(found, number) for _ in range(NUM_ORDERS)]
    return itertools.cycle(min(orders, key=strays))


def train_under_failures(
    run: RunDirectory, words: Sequence[str], gaps: Iterator[float], dice: random.Random
) -> list[float]:
    """Train to the end; returns when ranks were killed, in seconds since the start."""
    kills: list[float] = []
    begin = time.monotonic()
    with job(run, words) as launcher:
        due = next(gaps)
        while launcher.poll() is None:
            now = time.monotonic() - begin
            assert now < _DEADLINE_SECONDS, "the run does not end"
            if now >= due:
                kill_a_rank(launcher, dice)
                kills.append(round(time.monotonic() - begin, 2))
                due = kills[-1] + next(gaps)
            time.sleep(0.02)
        assert launcher.returncode == 0, "the run has failed"
    return kills


def figures(root: Path, seed: int) -> dict[str, Any]:
    dice = random.Random(seed)
    shards = shard_synthetic(root / "shards", num_train=NUM_TRAIN, num_val=256)
    first, second = RunDirectory(root / "first"), RunDirectory(root / "second")
    calibrate(first, shards, dice)
    costs = costs_of(read_rows(first.events))
    assert costs.step is not None
    assert costs.restart is not None
    mean = DISTANCE_IN_RESTARTS * costs.restart
    epochs = WORK_IN_RESTARTS * costs.restart / costs.step * GLOBAL_BATCH_SIZE / NUM_TRAIN

    def planned(save_every: float) -> Plan:
        command = (*training(shards, epochs, save_every),)
        return plan_of(Options(from_run=first.path, mtbf_hours=mean / 3600, command=command))

    plan = planned(planned(1).best_save_every_epochs)
    gaps = distances(max(1, round(plan.failures)), mean, dice)
    words = training(shards, epochs, plan.save_every_epochs)
    kills = train_under_failures(second, words, gaps, dice)
    ledger = ledger_of(read_rows(second.events))
    assert ledger is not None
    return {
        "claim": "launch plan predicts wall time and goodput of a job that fails to 10 %",
        "seed": seed,
        "plan": plan.to_json(),
        "restart_seconds": round(costs.restart, 2),
        "mean_seconds_between_failures": round(mean, 2),
        "killed_at_seconds": kills,
        "failures": {"predicted": round(plan.failures, 2), "measured": len(kills)},
        "wall_seconds": {
            "predicted": round(plan.wall_seconds, 1),
            "measured": round(ledger.total_seconds, 1),
            "ratio": round(plan.wall_seconds / ledger.total_seconds, 3),
        },
        "goodput": {
            "predicted": round(plan.goodput, 4),
            "measured": round(ledger.goodput, 4),
            "ratio": round(plan.goodput / ledger.goodput, 3),
        },
        "ledger_seconds": {name: round(value, 2) for name, value in ledger.seconds.items()},
    }


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--seed", type=int, default=2012)
    options = options_parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        report(figures(Path(scratch), options.seed), options.json)


if __name__ == "__main__":
    main()
