"""The split layout of the 2012 network against the fused one, on ranks of this machine.

Called by `benchmarks.step`. Both layouts train the same run, in fp32 on generated images: one rank
with both columns, two ranks with one each. Said are the largest relative difference of a loss over
50 steps and of the weights in the end; what crosses between the columns, per image and direction;
and how many bytes of gradients each rank averages with the other replicas, in two replicas.

Differences in the last bits grow from step to step, the faster the higher the learning rate, by
whatever they were made. So a run is compared with one more that differs in the order of additions
alone: two fused ranks, each with half of the batch.

    torchrun --nproc_per_node=4 -m benchmarks.columns split PATH     # used by it, to count
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.measurement import shard_synthetic, torchrun, train
from pipeline.config.model import ModelConfig
from pipeline.config.schema import Config, DistributedConfig
from pipeline.model.build import build_model
from pipeline.optim.replica import Replica
from pipeline.ranks.connect import connect
from pipeline.ranks.failure import leave
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.mesh import build_mesh
from pipeline.run import checkpoint
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import of_type
from pipeline.run.events import TrainEvent

STEPS = 50
RATES = (5e-6, 1e-4, 1e-2)
"""Up to the recipe's own."""

NUM_IMAGES = 2


def figures() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        counts = {}
        for layout in ("fused", "split"):
            path = root / f"{layout}.json"
            num_ranks = {"fused": 2, "split": 4}[layout]
            command = torchrun(num_ranks, "benchmarks.columns", layout, path)
            subprocess.run(command, check=True, stdout=sys.stderr)
            counts[layout] = json.loads(path.read_text())
        return {**counts, **_differences(root)}


def _differences(root: Path) -> dict[str, Any]:
    shards = shard_synthetic(root / "shards", num_train=400, num_val=8, size=256)

    def run(name: str, layout: str, num_ranks: int, rate: float) -> _Outcome:
        return _train(root / name, shards, layout, num_ranks, rate)

    found = {}
    for rate in RATES:
        fused = run(f"fused-{rate}", "fused", 1, rate)
        split = run(f"split-{rate}", "split", 2, rate)
        halves = run(f"halves-{rate}", "fused", 2, rate)
        found[f"rate {rate:g}"] = {
            "split against fused": _difference(split, fused),
            "two fused ranks against one": _difference(halves, fused),
        }
    return found


_Outcome = tuple[list[float], dict[str, torch.Tensor]]
"""Losses of all steps, and the weights after the last."""


def _train(run: Path, shards: Path, layout: str, num_ranks: int, rate: float) -> _Outcome:
    options = ["--global_batch_size", 8, "--epochs", 1, "--evaluation.every_epochs", 0]
    options += ["--optim.learning_rate", rate, "--log_every_steps", 1]
    where = ["--data.shards", shards, "--model.columns", layout, "--distributed.device", "cpu"]
    events = train(run, "alexnet_2012", *where, *options, num_ranks=num_ranks)
    losses = [event.loss for event in of_type(events, TrainEvent)]
    assert len(losses) == STEPS
    newest = checkpoint.newest_good(RunDirectory(run).checkpoints)
    assert newest is not None
    return losses, checkpoint.load(newest)["model"]


def _difference(one: _Outcome, other: _Outcome) -> dict[str, float]:
    losses = zip(one[0], other[0], strict=True)
    square = sum(float((one[1][name] - w).double().square().sum()) for name, w in other[1].items())
    whole = sum(float(w.double().square().sum()) for w in other[1].values())
    return {
        "largest relative difference of a loss": max(abs(a - b) / b for a, b in losses),
        "norm of the weights' difference by that of the weights": math.sqrt(square / whole),
    }


def count(layout: Any, path: Path) -> None:
    """On each rank of a torchrun: what this rank sends and averages in one step."""
    config = Config(model=ModelConfig(name="alexnet_2012", columns=layout))
    with connect(LaunchEnvironment.read(), DistributedConfig(device="cpu")) as world:
        mesh = build_mesh(world, layout, 60)
        model = build_model(config.model, 1000, (224, 224), mesh.columns)
        replica = Replica(model, config, world, mesh)
        images = torch.zeros(NUM_IMAGES, 3, 224, 224)
        zeros = torch.zeros(NUM_IMAGES, dtype=torch.int64)
        with _counting() as counted:
            replica.add_gradients(images, zeros, zeros, step_samples=8, is_last=True)
        found = world.all_gather_object(counted)
        if world.is_main:
            path.write_text(json.dumps(found[0]))
        assert all(one["elements"] == found[0]["elements"] for one in found)


@contextmanager
def _counting() -> Iterator[dict[str, Any]]:
    """Elements sent to the other column per image, in order, and bytes that are averaged."""
    counted: dict[str, Any] = {"elements": [], "gradient_bytes": 0}
    gather, swap, average = dist.all_gather, dist.all_to_all_single, dist.all_reduce

    def counted_gather(parts: Any, held: torch.Tensor, group: Any) -> None:
        counted["elements"].append(held.numel() // NUM_IMAGES)
        gather(parts, held, group=group)

    def counted_swap(received: torch.Tensor, given: torch.Tensor, group: Any) -> None:
        counted["elements"].append(given.numel() // 2 // NUM_IMAGES)
        swap(received, given, group=group)

    def counted_average(tensor: torch.Tensor, group: Any, async_op: bool) -> Any:
        counted["gradient_bytes"] += tensor.numel() * tensor.element_size()
        return average(tensor, group=group, async_op=async_op)

    dist.all_gather, dist.all_to_all_single = counted_gather, counted_swap  # type: ignore[assignment]
    dist.all_reduce = counted_average  # type: ignore[assignment]
    try:
        yield counted
    finally:
        dist.all_gather, dist.all_to_all_single, dist.all_reduce = gather, swap, average


if __name__ == "__main__":
    count(sys.argv[1], Path(sys.argv[2]))
    leave(0)
