"""What every benchmark says beside its figures, and how it runs training and reads its log."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.optim.processor import instruction_sets, processor_name
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import of_type, read_events
from pipeline.run.events import Event, RunEvent, TrainEvent
from pipeline.run.phase import Label
from pipeline.train.provenance import versions


def parser(description: str | None) -> argparse.ArgumentParser:
    """With the option that all benchmarks share."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", type=Path, metavar="PATH", help="also write the figures there")
    return made


def spread(values: Sequence[float], digits: int = 4) -> dict[str, Any]:
    """Number, median, mean, minimum and maximum."""
    return {
        "n": len(values),
        "median": round(statistics.median(values), digits),
        "mean": round(statistics.fmean(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def environment() -> dict[str, Any]:
    """When and on what something is measured."""
    return {
        "measured": time.strftime("%Y-%m-%d", time.gmtime()),
        "hardware": f"{len(os.sched_getaffinity(0))} cores of {processor_name()}",
        "instruction_sets": instruction_sets(),
        "versions": versions(),
    }


def report(figures: dict[str, Any], path: Path | None) -> None:
    """Print the figures as JSON with the machine they are from, and write them to `path`."""
    text = json.dumps(environment() | figures, indent=1)
    print(text)
    if path is not None:
        path.write_text(text + "\n")


def shard_folder(
    images: Path, shards: Path, *options: object, encoding: str = "rgb", size: int | None = None
) -> Path:
    command = shard_folder_command(images, shards, *options, encoding=encoding, size=size)
    subprocess.run(command, check=True)
    return shards


def shard_folder_command(
    images: Path, shards: Path, *options: object, encoding: str, size: int | None
) -> list[str]:
    paths = ["--input", images, "--output", shards]
    return _module(
        "data_prep", "shard", "folder", *paths, "--encoding", encoding, *_size(size), *options
    )


def shard_synthetic(shards: Path, *, num_train: int, num_val: int, size: int | None = None) -> Path:
    counts = ["--num-train", num_train, "--num-val", num_val]
    options = ["--output", shards, *counts, *_size(size)]
    subprocess.run(_module("data_prep", "shard", "synthetic", *options), check=True)
    return shards


def _size(size: int | None) -> list[object]:
    return [] if size is None else ["--size", size]


def _module(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", name, *map(str, arguments)]


def torchrun(num_ranks: int, module: str, *arguments: object) -> list[str]:
    """The command that runs a module on ranks of this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, f"--nproc_per_node={num_ranks}", "-m", module, *map(str, arguments)]


def train(
    run: Path, *arguments: object, num_ranks: int = 2, exporter: bool | None = False
) -> list[Event]:
    """Train to the end and return the run's events; the output goes to standard error.

    `exporter` None says nothing of it, for a run without metrics.
    """
    options = ["--run-dir", run]
    if exporter is not None:
        options += ["--metrics.exporter", exporter]
    command = torchrun(num_ranks, "pipeline.train", *arguments, *options)
    subprocess.run(command, check=True, stdout=sys.stderr)
    return read_events(RunDirectory(run).events)


def precision_of(events: Sequence[Event]) -> str:
    """That of a run's first attempt, and so of all."""
    return of_type(events, RunEvent)[0].precision


def images_per_second(events: Sequence[Event]) -> float:
    """From the first to the last logged step of one uninterrupted attempt, by the wall clock."""
    rows, (start,) = of_type(events, TrainEvent), of_type(events, RunEvent)
    num_samples = (rows[-1].step - rows[0].step) * start.global_batch_size
    return num_samples / (rows[-1].time - rows[0].time)


def phase_share(events: Sequence[Event], phase: Label) -> float:
    """Share of rank 0's step time, the first log interval left out as warm-up."""
    rows = of_type(events, TrainEvent)[1:]
    total = sum(value or 0.0 for row in rows for value in row.phase_seconds.values())
    return sum(row.phase_seconds[phase] or 0.0 for row in rows) / total
