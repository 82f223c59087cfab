"""Kill -9 one rank at a random step, go on, and compare with a run that was left alone.

    python -m benchmarks.recovery [--kills 20] [--json PATH]

Each run is killed once, at a random step of a random rank, and started again with the same command
until it is done. Its weights must then equal those of the undisturbed run, bit for bit. What a
resumed rank reads before its first step is measured with the loader it would use.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.measurement import parser, report, shard_synthetic, spread, torchrun
from data_prep.shard_set.manifest import read_manifest
from pipeline.config.data import DataConfig
from pipeline.config.recipes import cifar10
from pipeline.data.open import open_data
from pipeline.metrics.rank_file import rank_file_name, read_writer
from pipeline.run import checkpoint
from pipeline.run.directory import RunDirectory

NUM_RANKS, NUM_STEPS, GLOBAL_BATCH_SIZE, NUM_TRAIN = 2, 96, 128, 4096


def command(shards: Path, run: RunDirectory) -> list[str]:
    options = ["--data.shards", shards, "--epochs", 3, "--metrics.exporter", "false"]
    options += ["--log_every_steps", 1, "--checkpoint.every_epochs", 0.25]
    options += ["--global_batch_size", GLOBAL_BATCH_SIZE, "--metrics.publish_seconds", 0.5]
    return torchrun(NUM_RANKS, "pipeline.train", "cifar10", "--run-dir", run.path, *options)


def last_step(run: RunDirectory) -> int:
    """The last step in the log of a run under way."""
    lines = run.events.read_text().splitlines() if run.events.exists() else []
    return max((int(line.split('"step": ')[1].split(",")[0]) for line in lines), default=0)


def train_and_kill(shards: Path, run: RunDirectory, step: int, rank: int) -> int:
    """Train until `step` is logged, kill a rank, wait for the end; returns the last step done."""
    with subprocess.Popen(
        command(shards, run), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as job:
        while last_step(run) < step:
            assert job.poll() is None, "the job has ended before it was killed"
            time.sleep(0.01)
        os.kill(read_writer(run.metrics / rank_file_name(rank)).pid, signal.SIGKILL)
        job.wait()
    return last_step(run)


def train_to_end(shards: Path, run: RunDirectory) -> None:
    subprocess.run(command(shards, run), check=True, stdout=subprocess.DEVNULL)


def weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    path = checkpoint.named(run.checkpoints, "newest")
    assert checkpoint.step_of(path) == NUM_STEPS
    model: dict[str, torch.Tensor] = checkpoint.load(path)["model"]
    return model


def read_before_first_step(shards: Path, step: int) -> tuple[int, float]:
    """Bytes and seconds until a resumed rank has its first batch, read-ahead included."""
    begin = time.perf_counter()
    config = dataclasses.replace(
        cifar10(), data=DataConfig(shards=str(shards)), global_batch_size=GLOBAL_BATCH_SIZE
    )
    with contextlib.ExitStack() as resources:
        data = open_data(config, torch.device("cpu"), resources)
        source = data.open_files(data.plan(NUM_RANKS), 0)
        loader = resources.enter_context(source(step, NUM_STEPS))
        next(loader)
        return loader.take_cost().num_bytes, time.perf_counter() - begin


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--kills", type=int, default=20)
    options = options_parser.parse_args()
    dice = random.Random(2012)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        shards = shard_synthetic(root / "shards", num_train=NUM_TRAIN, num_val=256)
        undisturbed = RunDirectory(root / "undisturbed")
        train_to_end(shards, undisturbed)
        expected = weights(undisturbed)
        steps, equal = [], 0
        for number in range(options.kills):
            run = RunDirectory(root / f"killed-{number}")
            steps.append(
                train_and_kill(shards, run, dice.randrange(1, NUM_STEPS), dice.randrange(NUM_RANKS))
            )
            train_to_end(shards, run)
            found = weights(run)
            equal += all(torch.equal(found[name], expected[name]) for name in expected)
            sys.stderr.write(f"killed at step {steps[-1]}: {equal} of {number + 1} equal\n")
        reads = [read_before_first_step(shards, step) for step in steps if step < NUM_STEPS]
        shard_bytes = read_manifest(shards).split("train").shard_bytes[0]
    figures = {
        "claim": "a run whose rank is killed ends with the weights of one left alone, bit for bit",
        "kills": options.kills,
        "equal": equal,
        "killed_at_steps": steps,
        "bytes_read_before_first_step": spread([num_bytes for num_bytes, _ in reads], 0),
        "seconds_to_first_batch": spread([seconds for _, seconds in reads]),
        "shard_bytes": shard_bytes,
    }
    report(figures, options.json)


if __name__ == "__main__":
    main()
