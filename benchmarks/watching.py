"""What it costs to look for slow ranks and to compare replicas, beside the steps they belong to.

    python -m benchmarks.watching [--rounds 9] [--json PATH]

Everything is CPU time, as other work on the machine does not count in it. The parts are measured
one after the other in each round, on one thread; their shares are of the same round's step, at one
log interval in 50 steps. Then 2 ranks of `cifar10` train with all metrics, their publication and
both of these on in every other log interval, and off in those between.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.measurement import parser, report, shard_synthetic, spread, torchrun
from pipeline.config.recipes import RECIPES
from pipeline.config.schema import Config
from pipeline.model.build import build_model
from pipeline.model.network import Network
from pipeline.optim.fingerprint import fingerprint, held_by
from pipeline.optim.precision import arithmetic_of, resolve
from pipeline.optim.replica import Replica
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.mesh import build_mesh
from pipeline.ranks.world import World
from pipeline.run.phase import PHASE_LABELS
from pipeline.train.rank_sums import RankSums, RankTimes
from pipeline.train.stragglers import Stragglers

LOG_STEPS = 50
WORLD_SIZES = (2, 64)
NETWORKS = {"cifar10": 64, "alexnet_2012": 64}
"""Recipes, and the images of a rank's step where there are two."""


def cpu_seconds(action: Callable[[], object], calls: int) -> float:
    """Of a call."""
    begin = time.process_time()
    for _ in range(calls):
        action()
    return (time.process_time() - begin) / calls


def config_of(recipe: str, world: World) -> Config:
    return resolve(RECIPES[recipe](), None, [arithmetic_of(world.device)])


def step_of(recipe: str, num_images: int, world: World) -> tuple[Callable[[], object], Network]:
    """A step of one rank by itself, averaging left out, and its network."""
    config = config_of(recipe, world)
    size = {"cifar10": 32, "alexnet_2012": 224}[recipe]
    model = build_model(config.model, 1000 if size == 224 else 10, (size, size))
    replica = Replica(model, config, world, build_mesh(world, "fused", timeout_seconds=60))
    shape = (num_images, 3, size, size)
    images = torch.randn(shape).to(memory_format=torch.channels_last)
    numbers = torch.zeros(num_images, dtype=torch.int64)

    def step() -> None:
        replica.add_gradients(images, numbers, numbers, step_samples=num_images, is_last=True)
        replica.update()

    return step, model


def fingerprint_of(model: Network) -> torch.Tensor:
    return fingerprint(held_by(model).values())


def measure_parts(rounds: int) -> dict[str, Any]:
    """CPU time of the parts, and their shares of a step."""
    device = torch.device("cpu")
    world = World(environment=LaunchEnvironment(), device=device, store=None, control=None)
    phases = dict.fromkeys(PHASE_LABELS, 0.01)
    times, interval = RankTimes(waits_in="sync_wait"), RankTimes(waits_in="sync_wait")
    for _ in range(LOG_STEPS):
        interval.add(phases)
    row = torch.zeros(4, dtype=torch.float64)
    looks = {size: Stragglers(1) for size in WORLD_SIZES}
    seconds: dict[str, list[float]] = {}

    def note(name: str, action: Callable[[], object], calls: int) -> float:
        seconds.setdefault(name, []).append(cpu_seconds(action, calls))
        return seconds[name][-1]

    shares: dict[str, list[float]] = {}
    networks = {recipe: step_of(recipe, images, world) for recipe, images in NETWORKS.items()}
    for step, _ in networks.values():
        step()
    for _ in range(rounds):
        add = note("adding a step", lambda: times.add(phases), 2000)
        gather = note("gathering", lambda: RankSums(times=times).gather(world, row), 200)
        for recipe, (step, model) in networks.items():
            step_seconds = note(f"{recipe}: a step", step, 3 if recipe == "cifar10" else 1)
            of_model = partial(fingerprint_of, model)
            printing = note(f"{recipe}: a fingerprint", of_model, 3)
            share = printing / LOG_STEPS / step_seconds
            shares.setdefault(f"{recipe}: comparing replicas", []).append(share)
            for size, look in looks.items():
                looking = note(
                    f"looking at {size} ranks", partial(look.look, [interval] * size), 10
                )
                share = (add + (gather + looking) / LOG_STEPS) / step_seconds
                name = f"{recipe}: looking for slow ones of {size} ranks"
                shares.setdefault(name, []).append(share)
    return {
        "cpu_seconds": {name: spread(values, 7) for name, values in seconds.items()},
        "share_of_a_step": {name: spread(values, 6) for name, values in shares.items()},
    }


def measure_runs(rounds: int, folder: Path) -> dict[str, Any]:
    """The ratio of CPU times of log intervals, all on against all off, by pairs of neighbours."""
    shards = shard_synthetic(folder / "shards", num_train=4096, num_val=64)
    never = ["--evaluation.every_epochs", 0, "--checkpoint.every_epochs", 0]
    steps = ["--log_every_steps", LOG_STEPS, "--max-steps", LOG_STEPS * 2 * (rounds + 1)]
    command = torchrun(
        *(2, "benchmarks.watched_ranks", folder, "cifar10", "--data.shards", shards),
        *("--run-dir", folder / "run", "--global_batch_size", 128, "--epochs", 1000),
        *("--metrics.exporter", False, *never, *steps),
    )
    subprocess.run(command, check=True, stdout=sys.stderr)
    ranks = [json.loads((folder / f"{rank}.json").read_bytes()) for rank in (0, 1)]
    intervals = list(zip(*ranks, strict=True))[2:]  # the first pair warms up
    cpu = [sum(rank[1] for rank in ranks_of) / LOG_STEPS for ranks_of in intervals]
    wall = [ranks_of[0][2] / LOG_STEPS for ranks_of in intervals]
    return {
        "cpu_seconds_of_a_step_on_both_ranks": {
            "all on": spread(cpu[::2], 5),
            "all off": spread(cpu[1::2], 5),
        },
        "ratio_of_cpu_time": spread([a / b for a, b in zip(cpu[::2], cpu[1::2], strict=True)]),
        "ratio_of_wall_time": spread([a / b for a, b in zip(wall[::2], wall[1::2], strict=True)]),
    }


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--rounds", type=int, default=9)
    options = options_parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {
        "claim": "looking for slow ranks costs below 0.5 % of a step, comparing replicas below "
        "0.2 %, and all that watches below 1 %",
        "log_every_steps": LOG_STEPS,
    }
    figures |= measure_parts(options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        figures["runs"] = measure_runs(options.rounds, Path(folder))
    report(figures, options.json)


if __name__ == "__main__":
    main()
