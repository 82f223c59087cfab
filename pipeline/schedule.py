"""Learning rates as pure functions of the updates done."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.config import ScheduleConfig


def learning_rate_ratio(
    config: ScheduleConfig,
    *,
    updates: int,
    steps_per_epoch: int,
    target_steps: int,
    losses: Sequence[float] = (),
) -> float:
    """Share of the peak learning rate for the update that follows `updates` applied ones.

    `updates` leaves out skipped steps, so a step whose gradients overflowed does not move the
    schedule. `losses` are those of the evaluations so far, oldest first; only `plateau` looks.
    The warm-up rises in a straight line; the first update after it has the peak rate (Goyal et
    al., arXiv 1706.02677, section 2.2).
    """
    warmup = round(config.warmup_ratio * target_steps)
    if updates < warmup:
        return (updates + 1) / (warmup + 1)
    if config.name == "constant":
        return 1.0
    if config.name == "step":
        return _step(config, updates / steps_per_epoch)
    if config.name == "plateau":
        return config.factor ** num_plateaus(losses, config.patience_evaluations)
    progress = min(1.0, (updates - warmup) / max(1, target_steps - warmup))
    remaining = 1 - progress
    if config.name == "cosine":  # Loshchilov and Hutter, arXiv 1608.03983, equation 5
        remaining = (1 + math.cos(math.pi * progress)) / 2
    return config.final_ratio + (1 - config.final_ratio) * remaining


def _step(config: ScheduleConfig, epoch: float) -> float:
    return config.factor ** sum(epoch >= drop for drop in config.step_epochs)


def num_plateaus(losses: Sequence[float], patience: int) -> int:
    """How often `patience` evaluations in a row have brought no loss below the best before them."""
    best, waited, plateaus = math.inf, 0, 0
    for loss in losses:
        if loss < best:
            best, waited = loss, 0
            continue
        waited += 1
        if waited == patience:
            waited, plateaus = 0, plateaus + 1
    return plateaus
