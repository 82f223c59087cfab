"""Learning rates as pure functions of the updates done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from pipeline.config.optim import OptimConfig, ScheduleConfig

_NET_170_BIAS_FACTOR = 0.1
"""Of the biases' one drop, at half of the run (`layer-params-170.cfg` of the 2012 code)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """Where the run is, for the update that follows `updates` applied ones.

    `updates` leaves out skipped steps, so a step whose gradients overflowed does not move the
    schedule. `losses` are those of the evaluations so far, oldest first; only `plateau` looks.
    """

    updates: int
    steps_per_epoch: int
    target_steps: int
    losses: Sequence[float] = ()

    @property
    def epoch(self) -> float:
        return self.updates / self.steps_per_epoch


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """The learning rates of one update."""

    weights: float
    biases: float
    conv1_weights: float
    conv1_biases: float


def learning_rates(optim: OptimConfig, schedule: ScheduleConfig, position: Position) -> Rates:
    """The rates of all groups of parameters (`pipeline.optim.optimizer.build_optimizer`)."""
    ratio = learning_rate_ratio(schedule, position)
    biases = optim.learning_rate * optim.bias_learning_rate_ratio * _bias_ratio(schedule, position)
    is_frozen = (
        schedule.conv1_freeze_epoch is not None and position.epoch >= schedule.conv1_freeze_epoch
    )
    drops = _num_passed(schedule.conv1_step_epochs, position)
    conv1 = optim.learning_rate * ratio * schedule.factor**drops
    return Rates(
        weights=optim.learning_rate * ratio,
        biases=biases,
        conv1_weights=0.0 if is_frozen else conv1,
        conv1_biases=0.0 if is_frozen else biases,
    )


def learning_rate_ratio(config: ScheduleConfig, position: Position) -> float:
    """Share of the peak learning rate that weights have.

    The warm-up rises in a straight line; the first update after it has the peak rate (Goyal et
    al., arXiv 1706.02677, section 2.2).
    """
    warmup = _num_warmup(config, position)
    if position.updates < warmup:
        return (position.updates + 1) / (warmup + 1)
    progress = min(1.0, (position.updates - warmup) / max(1, position.target_steps - warmup))
    match config.name:
        case "constant":
            return 1.0
        case "step":
            return config.factor ** _num_passed(config.step_epochs, position)
        case "plateau":
            return config.factor ** num_plateaus(position.losses, config.patience_evaluations)
        case "dexp":
            return _discrete_exponential(config, progress)
        case "linear":
            return _above_final(config, 1 - progress)
        case "cosine":  # Loshchilov and Hutter, arXiv 1608.03983, equation 5
            return _above_final(config, (1 + math.cos(math.pi * progress)) / 2)
        case unknown:
            assert_never(unknown)


def _above_final(config: ScheduleConfig, remaining: float) -> float:
    return config.final_ratio + (1 - config.final_ratio) * remaining


def _discrete_exponential(config: ScheduleConfig, progress: float) -> float:
    """`dexp` of the 2012 code: equally long stairs, from 1 to the final ratio on the last one."""
    stair = min(int(progress * config.num_stairs), config.num_stairs - 1)
    return float(config.final_ratio ** (stair / (config.num_stairs - 1)))


def _bias_ratio(config: ScheduleConfig, position: Position) -> float:
    """Share of their peak rate that biases have; they warm up as weights do."""
    if position.updates < _num_warmup(config, position):
        return learning_rate_ratio(config, position)
    match config.biases:
        case "follow":
            return learning_rate_ratio(config, position)
        case "constant":
            return 1.0
        case "halfway":
            is_late = 2 * position.updates >= position.target_steps
            return _NET_170_BIAS_FACTOR if is_late else 1.0
        case unknown:
            assert_never(unknown)


def _num_warmup(config: ScheduleConfig, position: Position) -> int:
    return round(config.warmup_ratio * position.target_steps)


def _num_passed(epochs: Sequence[float], position: Position) -> int:
    return sum(position.epoch >= epoch for epoch in epochs)


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
