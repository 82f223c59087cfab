"""A run that begins where another one has got to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.config.optim import OptimConfig
from pipeline.optim.replica import Replica
from pipeline.ranks.world import World
from pipeline.run import checkpoint
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import of_type, read_rows
from pipeline.run.events import RunEvent
from pipeline.train.progress import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class NewRun:
    """The run that begins at another one's checkpoint."""

    config: Mapping[str, Any]
    """As JSON has it."""
    optim: OptimConfig
    manifest_sha256: str
    num_classes: int
    steps_per_epoch: int
    target_steps: int


def fork(replica: Replica, path: Path, new_run: NewRun, world: World) -> Progress:
    """Begin at another run's checkpoint; the ranks call it together. Raises `ValueError`."""
    progress = Progress()
    with world.fail_together():
        progress = take_over(replica, checkpoint.load(path, world.device), path, new_run)
    assert progress.step > 0, "a checkpoint follows a step"
    return progress


def take_over(replica: Replica, state: dict[str, Any], path: Path, new_run: NewRun) -> Progress:
    """Take weights, and what fits of the rest, from another run's checkpoint.

    The optimizer's state is taken if it is of the same kind, the loss scale in the same precision.
    The run goes on in the epoch that the other one was in, with its losses if the shard set is the
    same; which of its own checkpoints is the best, it finds anew. Raises `ValueError` if it is
    another network or there is nothing left to do.
    """
    saved = json.loads(state["settings"])
    _check_network(path, saved["config"]["model"]["name"], state["model"], new_run)
    was, now = saved["config"]["optim"], new_run.optim
    replica.load_state_dict(
        state,
        with_optimizer=was["name"] == now.name and (was["momentum"] > 0) == (now.momentum > 0),
        with_scaler=saved["config"]["precision"] == new_run.config["precision"],
    )
    before = Progress.from_state_dict(state["progress"])
    is_same = saved["manifest_sha256"] == new_run.manifest_sha256
    step = before.step
    if not is_same or _batches(saved["config"]) != _batches(new_run.config):
        epoch = before.step / _steps_per_epoch(path)
        step = max(1, round(epoch * new_run.steps_per_epoch))  # an early one may be less than half
    if step >= new_run.target_steps:
        raise ValueError(
            f"{path} is after epoch {step / new_run.steps_per_epoch:g}, and epochs is "
            f"{new_run.config['epochs']:g}: the run goes on from there, so "
            "give more --epochs in all"
        )
    return Progress(
        step=step,
        skipped_steps=before.skipped_steps if step == before.step else 0,
        losses=before.losses if is_same else [],
    )


def _check_network(
    path: Path, name: str, weights: Mapping[str, torch.Tensor], new_run: NewRun
) -> None:
    if name != new_run.config["model"]["name"]:
        raise ValueError(
            f"{path} is of the network {name}, and model.name is "
            f"{new_run.config['model']['name']}: fork with the same network"
        )
    num_classes = len(list(weights.values())[-1])  # the biases of the last layer
    if num_classes != new_run.num_classes:
        raise ValueError(
            f"{path} tells {num_classes} classes apart, and the shard set has "
            f"{new_run.num_classes}: fork with a shard set of as many classes"
        )


def _batches(config: Mapping[str, Any]) -> tuple[int, bool]:
    """What decides, with the number of samples, how many steps an epoch has."""
    return config["global_batch_size"], config["data"]["drop_last"]


def _steps_per_epoch(path: Path) -> int:
    """Of the run whose checkpoint is at `path`; raises `ValueError` if it does not say."""
    events = RunDirectory(path.parent.parent).events
    found = of_type(read_rows(events), RunEvent) if events.is_file() else []
    if not found:
        raise ValueError(
            f"{events} does not say how many steps an epoch had, and with another shard set or "
            "global_batch_size it has others: restore it from a copy"
        )
    return found[-1].steps_per_epoch
