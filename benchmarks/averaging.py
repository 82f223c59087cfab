"""How much of the averaging of gradients over gloo is hidden behind the backward pass on a CPU.

    python -m benchmarks.averaging [--rounds 7] [--json PATH]

Two replicas of the 2012 network on this machine, half of the cores each, batches of 64 each. Each
round takes, in turn: the forward and backward pass with averaging and without, and the averaging of
the same buckets alone. `waited` is the time from the last gradient to the end of the averaging, in
which nothing else is done; what is not waited for is hidden. It is not free: gloo copies and adds
on the cores that compute, so the pass with averaging is longer than the one without.

    torchrun --nproc_per_node=2 -m benchmarks.averaging ROUNDS PATH     # used by it
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from benchmarks.measurement import parser, report, spread, torchrun
from benchmarks.step import LOCAL_BATCH_SIZE, our_config
from pipeline.config.schema import DistributedConfig
from pipeline.model.build import build_model
from pipeline.optim.replica import Replica
from pipeline.ranks.connect import connect
from pipeline.ranks.failure import leave
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.mesh import build_mesh
from pipeline.ranks.world import World

NUM_RANKS = 2


class Passes:
    """The forward and backward pass of this rank, and the averaging of its buckets."""

    def __init__(self, world: World) -> None:
        self._world, config = world, our_config("code")
        model = build_model(config.model, 1000, (224, 224))
        self._replica = Replica(model, config, world, build_mesh(world, "fused", 600))
        images = torch.randn(LOCAL_BATCH_SIZE, 3, 224, 224)
        self._images = images.contiguous(memory_format=torch.channels_last)
        self._numbers = torch.arange(LOCAL_BATCH_SIZE)
        self._replica.when_gradients_are_ready = self._note
        self._replica.warm_up(self._images, self._numbers, self._numbers)
        self._buckets: list[torch.Tensor] = []
        average = dist.all_reduce

        def noted(bucket: torch.Tensor, group: Any, async_op: bool) -> Any:
            self._buckets.append(torch.zeros_like(bucket))
            return average(bucket, group=group, async_op=async_op)

        with mock.patch.object(dist, "all_reduce", noted):
            self.take(averages=True)

    def _note(self) -> None:
        self._ready = time.perf_counter()

    def take(self, *, averages: bool) -> tuple[float, float]:
        """Seconds of a pass, and of those the ones in which only averaging was left."""
        self._world.all_gather_object(None)
        begin = time.perf_counter()
        numbers, count = self._numbers, LOCAL_BATCH_SIZE * NUM_RANKS
        self._replica.add_gradients(
            self._images, numbers, numbers, step_samples=count, is_last=averages
        )
        end = time.perf_counter()
        self._replica.update()
        return end - begin, end - self._ready

    def average(self) -> float:
        """Seconds of the averaging alone, bucket by bucket."""
        self._world.all_gather_object(None)
        begin = time.perf_counter()
        for bucket in self._buckets:
            dist.all_reduce(bucket.div_(NUM_RANKS))
        return time.perf_counter() - begin


def measure(rounds: int, path: Path) -> None:
    """On each rank of a torchrun."""
    torch.set_num_threads(len(os.sched_getaffinity(0)) // NUM_RANKS)
    with connect(LaunchEnvironment.read(), DistributedConfig(device="cpu")) as world:
        passes = Passes(world)
        found: list[dict[str, float]] = []
        for _ in range(rounds):
            whole, waited = passes.take(averages=True)
            without, _ = passes.take(averages=False)
            alone = passes.average()
            found.append({"with": whole, "without": without, "alone": alone, "waited": waited})
        if world.is_main:
            path.write_text(json.dumps(found))


def figures(rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "found.json"
        command = torchrun(NUM_RANKS, "benchmarks.averaging", rounds, path)
        subprocess.run(command, check=True, stdout=sys.stderr)
        found = json.loads(path.read_text())
    seconds = {name: spread([one[name] for one in found]) for name in found[0]}
    ratios = {
        "averaging alone, of the pass without": [one["alone"] / one["without"] for one in found],
        "hidden, of the averaging": [1 - one["waited"] / one["alone"] for one in found],
        "longer by, of the averaging": [
            (one["with"] - one["without"]) / one["alone"] for one in found
        ],
        "waited, of the pass": [one["waited"] / one["with"] for one in found],
    }
    return {
        "local_batch_size": LOCAL_BATCH_SIZE,
        "precision": our_config("code").resolved_precision,
        "seconds": seconds,
        **{name: spread(values, 3) for name, values in ratios.items()},
    }


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--rounds", type=int, default=7)
    options = options_parser.parse_args()
    claim = "what of gloo's averaging is hidden behind the backward pass"
    report({"claim": claim, **figures(options.rounds)}, options.json)


if __name__ == "__main__":
    if "RANK" in os.environ:
        measure(int(sys.argv[1]), Path(sys.argv[2]))
        leave(0)
    main()
