"""What two GPUs of a host do together: all-reduce, two replicas, and one replica in two columns."""

from __future__ import annotations

import functools
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import steps
from benchmarks.gpu.results import Results, write
from benchmarks.gpu.scale import DRY_RUN, ON_GPU, Scale
from benchmarks.gpu.timing import milliseconds
from benchmarks.measurement import spread, torchrun
from pipeline.config.schema import DistributedConfig
from pipeline.ranks.connect import connect
from pipeline.ranks.failure import leave
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.world import World

NUM_RANKS = 2


def measure(scale: Scale, folder: Path, results: Results) -> None:
    """The ranks are processes of their own; this one compares them with one rank alone."""
    alone = steps.rates(steps.our_step, scale.train_batch, "bf16", scale)
    results.add("one rank", {"images_per_second": spread(alone, 0), "batch": scale.train_batch})
    steps.start_afresh()
    path = folder / "ranks.json"
    command = torchrun(NUM_RANKS, "benchmarks.gpu.ranks", scale.kind, path)
    subprocess.run(command, check=True, stdout=sys.stderr)
    for name, figure in json.loads(path.read_text()).items():
        if "images_per_second" in figure:
            ratio = figure["images_per_second"]["median"] / statistics.median(alone)
            figure["ratio to one rank"] = round(ratio, 3)
        results.add(name, figure)


def on_each_rank(kind: str, path: Path) -> None:
    """On each rank of a torchrun."""
    scale = ON_GPU if kind == "cuda" else DRY_RUN
    config = DistributedConfig(device=scale.kind)
    with connect(LaunchEnvironment.read(), config) as world:
        figures: dict[str, Any] = {"all-reduce": all_reduce(scale, world)}
        for layout in ("fused", "split"):
            # As many images a rank as one rank alone has.
            num_images = NUM_RANKS * scale.train_batch
            step = steps.OurStep(num_images, "bf16", world, layout=layout)
            count = scale.steps_in_round(num_images)
            seconds = [steps.seconds_of(step, count, scale) for _ in range(scale.rounds + 1)]
            rates = [count * num_images / one for one in seconds[1:]]
            name = {"fused": "two replicas", "split": "one replica, a column on each"}[layout]
            figures[name] = {"images_per_second": spread(rates, 0), "batch": num_images}
            if world.is_main:
                write(path, figures)
            del step
            steps.start_afresh()


def all_reduce(scale: Scale, world: World) -> dict[str, float]:
    """GB/s that cross each GPU's link each way, by the bytes of the message.

    2 (n - 1) / n of the message have to; NVIDIA's nccl-tests call that the bus bandwidth.
    """
    found = {}
    for num_bytes in scale.message_bytes:
        values = torch.zeros(num_bytes // 4, device=world.device)
        (times,) = milliseconds(scale, functools.partial(world.all_reduce, values))
        crossing = 2 * (world.size - 1) / world.size * num_bytes
        found[f"{num_bytes} bytes"] = round(crossing / statistics.median(times) / 1e6, 3)
    return found


if __name__ == "__main__":
    on_each_rank(sys.argv[1], Path(sys.argv[2]))
    leave(0)
