"""Begins a run at a checkpoint of another one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from pipeline.data.open import BatchPlan
from pipeline.optim.replica import Replica
from pipeline.ranks.world import World
from pipeline.run import checkpoint
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import of_type, read_rows
from pipeline.run.events import RunEvent
from pipeline.run.settings import Settings, saved_settings, settings_of
from pipeline.train.progress import Progress


def fork(
    replica: Replica,
    settings: Settings,
    num_classes: int,
    plan: BatchPlan,
    target_steps: int,
    world: World,
    path: Path,
) -> Progress:
    """Take weights, and what fits of the rest, from another run's checkpoint `path`.

    The optimizer's state is taken if it is of the same kind, the loss scale in the same precision.
    The run goes on in the epoch that the other one was in, with its losses if the shard set is the
    same; its own best checkpoint it finds anew. Fails on all ranks together if it is another
    network or there is nothing left to do.
    """
    config = settings.config
    with world.fail_together():
        state = checkpoint.load(path, world.device)
        forked = settings_of(saved_settings(state, path))
        was, now = forked.config.optim, config.optim
        _check_network(path, forked.config.model.name, state["model"], settings, num_classes)
        replica.load_state_dict(
            state,
            with_optimizer=was.name == now.name and (was.momentum > 0) == (now.momentum > 0),
            with_scaler=forked.config.precision == config.precision,
        )
        before = Progress(**state["progress"])
        is_same, step = forked.manifest_sha256 == settings.manifest_sha256, before.step
        batches = forked.config.global_batch_size, forked.config.data.drop_last
        if not is_same or batches != (config.global_batch_size, config.data.drop_last):
            epoch = step / _steps_per_epoch(path)
            step = max(1, round(epoch * plan.steps_per_epoch))  # an early one may be less than half
        if step >= target_steps:
            raise ValueError(
                f"{path} is after epoch {step / plan.steps_per_epoch:g}, and epochs is "
                f"{config.epochs:g}: the run goes on from there, so give more --epochs in all"
            )
    return Progress(
        step=step,
        skipped_steps=before.skipped_steps if step == before.step else 0,
        losses=before.losses if is_same else [],
    )


def _check_network(
    path: Path,
    name: str,
    weights: Mapping[str, torch.Tensor],
    settings: Settings,
    num_classes: int,
) -> None:
    if name != settings.config.model.name:
        raise ValueError(
            f"{path} is of the network {name}, and model.name is "
            f"{settings.config.model.name}: fork with the same network"
        )
    had_classes = len(list(weights.values())[-1])  # the biases of the last layer
    if had_classes != num_classes:
        raise ValueError(
            f"{path} distinguishes {had_classes} classes, and the shard set has {num_classes}: "
            "fork with a shard set of as many classes"
        )


def _steps_per_epoch(path: Path) -> int:
    """Of the run whose checkpoint is at `path`; raises `ValueError` if it does not say."""
    events = RunDirectory(path.parent.parent).events
    found = of_type(read_rows(events), RunEvent)
    if not found:
        raise ValueError(
            f"{events} does not say how many steps an epoch had, and with another shard set or "
            "global_batch_size it has others: restore it from a copy"
        )
    return found[-1].steps_per_epoch
