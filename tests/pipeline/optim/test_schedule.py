"""Learning rates against their closed forms."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.optim import OptimConfig, ScheduleConfig
from pipeline.config.recipes import alexnet_2012, alexnet_2012_auto
from pipeline.config.schema import Config
from pipeline.optim.schedule import (
    Position,
    Rates,
    learning_rate_ratio,
    learning_rates,
    num_plateaus,
)

STEPS_PER_EPOCH = 10
TARGET_STEPS = 100


def position(updates: int, *losses: float) -> Position:
    return Position(
        updates=updates,
        steps_per_epoch=STEPS_PER_EPOCH,
        target_steps=TARGET_STEPS,
        losses=losses,
    )


def ratios(updates: range = range(TARGET_STEPS), **settings: Any) -> list[float]:
    """The share of the peak at each of `updates`, in a run of ten epochs of ten steps."""
    return [learning_rate_ratio(ScheduleConfig(**settings), position(number)) for number in updates]


def test_constant() -> None:
    assert ratios(name="constant") == [1.0] * TARGET_STEPS


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "plateau"])
def test_warmup_rises_in_a_straight_line_to_the_peak(name: str) -> None:
    warmup = ratios(range(21), name=name, warmup_ratio=0.2)
    assert np.allclose(warmup, np.arange(1, 22) / 21, rtol=1e-12)
    assert warmup[20] == 1.0


def test_warmup_is_rounded_to_whole_steps() -> None:
    assert ratios(range(3), name="linear", warmup_ratio=0.014) == [0.5, 1.0, 98 / 99]
    assert ratios(range(3), name="constant", warmup_ratio=0.004) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(("warmup_ratio", "final_ratio"), [(0, 0), (0.2, 0), (0.25, 0.3)])
def test_cosine(warmup_ratio: float, final_ratio: float) -> None:
    warmup = int(warmup_ratio * TARGET_STEPS)
    found = ratios(
        range(warmup, TARGET_STEPS),
        name="cosine",
        warmup_ratio=warmup_ratio,
        final_ratio=final_ratio,
    )
    progress = np.linspace(0, 1, TARGET_STEPS - warmup, endpoint=False)
    exact = final_ratio + (1 - final_ratio) * np.cos(progress * np.pi / 2) ** 2
    assert np.allclose(found, exact, rtol=1e-12)


@pytest.mark.parametrize(("warmup_ratio", "final_ratio"), [(0, 0), (0.2, 0), (0.25, 0.3)])
def test_linear(warmup_ratio: float, final_ratio: float) -> None:
    warmup = int(warmup_ratio * TARGET_STEPS)
    found = ratios(
        range(warmup, TARGET_STEPS),
        name="linear",
        warmup_ratio=warmup_ratio,
        final_ratio=final_ratio,
    )
    exact = np.linspace(1, final_ratio, TARGET_STEPS - warmup, endpoint=False)
    assert np.allclose(found, exact, rtol=1e-12)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_the_rate_rests_at_its_end(name: str) -> None:
    after = ratios(range(TARGET_STEPS, TARGET_STEPS + 30), name=name, final_ratio=0.25)
    assert np.allclose(after, 0.25, rtol=1e-12)


def test_steps_drop_with_the_first_update_of_their_epoch() -> None:
    found = ratios(name="step", step_epochs=(3, 6.5), factor=0.2)
    exact = [1.0] * 30 + [0.2] * 35 + [0.04] * 35
    assert np.allclose(found, exact, rtol=1e-12)


@given(steps_per_epoch=st.integers(1, 20_000), epoch=st.integers(1, 500))
def test_a_drop_is_at_the_same_epoch_however_long_epochs_are(
    steps_per_epoch: int, epoch: int
) -> None:
    config = ScheduleConfig(name="step", step_epochs=(epoch,))
    first = epoch * steps_per_epoch
    before, after = (
        learning_rate_ratio(
            config,
            Position(updates=updates, steps_per_epoch=steps_per_epoch, target_steps=10**9),
        )
        for updates in (first - 1, first)
    )
    assert (before, after) == (1.0, 0.1)


@given(
    name=st.sampled_from(["cosine", "linear"]),
    warmup_ratio=st.floats(0, 0.99),
    final_ratio=st.floats(0, 1),
)
def test_the_rate_rises_once_and_then_falls_within_its_bounds(
    name: str, warmup_ratio: float, final_ratio: float
) -> None:
    found = ratios(name=name, warmup_ratio=warmup_ratio, final_ratio=final_ratio)
    warmup = round(warmup_ratio * TARGET_STEPS)
    assert max(found) <= 1
    assert found[warmup] == 1
    assert np.all(np.diff(found[: warmup + 1]) > 0)
    assert np.all(np.diff(found[warmup:]) <= 1e-12)
    assert min(found[warmup:]) >= final_ratio - 1e-12


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([], 0),
        ([5, 4, 3, 2, 1], 0),
        ([3, 3, 3], 1),
        ([3, 4, 2, 3], 0),
        ([3, 4, 5, 6, 7], 2),
        ([3, 4, 5, 2, 2, 2], 2),
        ([3, 4, 5, 4, 2], 1),
        ([3, math.nan, math.nan], 1),
    ],
)
def test_plateaus_are_counted_from_the_last_best_or_drop(
    losses: list[float], expected: int
) -> None:
    assert num_plateaus(losses, patience=2) == expected


def test_plateau_drops_by_its_factor() -> None:
    config = ScheduleConfig(name="plateau", factor=0.5, patience_evaluations=1, warmup_ratio=0.1)

    def ratio(updates: int, *losses: float) -> float:
        return learning_rate_ratio(config, position(updates, *losses))

    assert ratio(20, 1.0) == 1.0
    assert ratio(20, 1.0, 1.0) == 0.5
    assert ratio(20, 1.0, 1.0, 0.9, 1.0) == 0.25
    assert ratio(4, 1.0, 1.0) == 5 / 11  # the warm-up is not shortened


def rates_of(config: Config, epoch: float) -> Rates:
    steps_per_epoch = 10_010  # ceil(1,281,167 / 128)
    target = round(config.epochs * steps_per_epoch)
    where = Position(
        updates=round(epoch * steps_per_epoch), steps_per_epoch=steps_per_epoch, target_steps=target
    )
    return learning_rates(config.optim, config.schedule, where)


@pytest.mark.parametrize(
    ("epoch", "weights", "conv1_weights", "conv1_biases"),
    [
        (0, 1e-2, 1e-2, 0.02),
        (24.999, 1e-2, 1e-2, 0.02),
        (25, 1e-3, 1e-3, 0.02),
        (51, 1e-4, 1e-4, 0.02),
        (67, 1e-4, 1e-5, 0.02),
        (72, 1e-4, 0, 0),
        (79, 1e-5, 0, 0),
        (90.999, 1e-5, 0, 0),
    ],
)
def test_the_rates_of_net_145(
    epoch: float, weights: float, conv1_weights: float, conv1_biases: float
) -> None:
    """As `layer-params-145.cfg` and the notes in it have them."""
    found = rates_of(alexnet_2012(), epoch)
    exact = Rates(
        weights=weights, biases=0.02, conv1_weights=conv1_weights, conv1_biases=conv1_biases
    )
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(exact), rel=1e-12)


@pytest.mark.parametrize(
    ("epoch", "weights", "biases"),
    [
        (0, 0.01, 0.02),
        (22.499, 0.01, 0.02),
        (22.5, 0.0015874011, 0.02),
        (45, 0.00025198421, 0.002),
        (67.5, 0.00004, 0.002),
        (89.999, 0.00004, 0.002),
    ],
)
def test_the_rates_of_net_170(epoch: float, weights: float, biases: float) -> None:
    """The stairs of `dexp[tgtFactor=250,numSteps=4]`, as the code's log prints them."""
    found = rates_of(alexnet_2012_auto(), epoch)
    assert (found.weights, found.biases) == pytest.approx((weights, biases), rel=1e-7)
    assert found.conv1_weights == (0 if epoch >= 74 else found.weights)


def test_biases_follow_unless_told_otherwise_and_warm_up_with_the_weights() -> None:
    optim = OptimConfig(learning_rate=0.1, bias_learning_rate_ratio=2)
    for biases in ("follow", "constant"):
        schedule = ScheduleConfig(
            name="step",
            step_epochs=(5,),
            warmup_ratio=0.2,
            biases=biases,
        )
        early = learning_rates(optim, schedule, position(4))
        assert early.biases == pytest.approx(2 * early.weights) == pytest.approx(0.2 * 5 / 21)
        late = learning_rates(optim, schedule, position(60))
        assert late.weights == pytest.approx(0.01)
        assert late.biases == pytest.approx(0.02 if biases == "follow" else 0.2)


def test_dexp_goes_down_equal_factors_in_equal_times() -> None:
    found = ratios(name="dexp", final_ratio=0.001, num_stairs=4)
    assert np.allclose(found, np.repeat([1, 0.1, 0.01, 0.001], 25), rtol=1e-12)
    assert ratios(range(TARGET_STEPS, 120), name="dexp", final_ratio=0.5) == [0.5] * 20
