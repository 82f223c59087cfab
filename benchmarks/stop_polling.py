"""What it costs a step that a run can be stopped.

    python -m benchmarks.stop_polling [--json PATH]

Two ranks over gloo do steps of 10 ms, which is what the fastest of ours take, and after each ask
whether to stop, as training does. The time in that question is compared with that of the steps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.measurement import parser, report, spread, torchrun
from pipeline.config.schema import DistributedConfig
from pipeline.ranks.connect import connect
from pipeline.ranks.failure import leave
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.stop import StopRequests, StopSignals
from pipeline.run.directory import RunDirectory

NUM_RANKS, NUM_STEPS, STEP_SECONDS, ROUNDS = 2, 1_000, 0.01, 5


def ask(run: RunDirectory, answers: Path) -> None:
    """On one rank: write the seconds spent asking, and in all, to `answers`."""
    signals = StopSignals()
    environment = LaunchEnvironment.read()
    with connect(environment, DistributedConfig(device="cpu")) as world:
        stops = StopRequests(world, run, signals)
        begin, seconds = time.perf_counter(), 0.0
        for step in range(NUM_STEPS):
            time.sleep(STEP_SECONDS)
            before = time.perf_counter()
            stops.agreed(step)
            seconds += time.perf_counter() - before
        whole = time.perf_counter() - begin
        stops.close()
    if environment.rank == 0:
        answers.write_text(json.dumps({"asking": seconds, "whole": whole}))


def main(options: argparse.Namespace) -> None:
    shares, microseconds = [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as scratch:
            answers = Path(scratch) / "answers.json"
            command = torchrun(NUM_RANKS, "benchmarks.stop_polling")
            environment = os.environ | {"ANSWERS": str(answers)}
            subprocess.run(command, check=True, env=environment)
            found = json.loads(answers.read_text())
        shares.append(found["asking"] / found["whole"])
        microseconds.append(1e6 * found["asking"] / NUM_STEPS)
    figures = {
        "claim": "that a run can be stopped costs less than 1 % of a step of 10 ms",
        "share_of_step": spread(shares, 6),
        "microseconds_a_step": spread(microseconds, 2),
        "steps_a_round": NUM_STEPS,
    }
    report(figures, options.json)


if __name__ == "__main__":
    if "ANSWERS" in os.environ:
        path = Path(os.environ["ANSWERS"])
        ask(RunDirectory(path.parent), path)
        leave(0)
    main(parser(__doc__).parse_args())
