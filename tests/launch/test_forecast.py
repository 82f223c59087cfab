"""The model of failures against a simulation of each failure, and against its limits."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from launch.forecast import (
    Costs,
    best_interval,
    daly_interval,
    expected_seconds,
    young_interval,
)

POSITIVE = st.floats(0.01, 100.0)
NUM_RUNS = 400


def simulated(work: float, interval: float, costs: Costs, seed: int) -> float:
    """One run, second by second of what happens in it: no formula of the model is used."""
    random = np.random.default_rng(seed)
    now, failure = 0.0, float(random.exponential(1 / costs.rate))
    done = 0.0  # work behind the newest save that counts
    position = 0.0  # work that the ranks have done
    pending: tuple[float, float] | None = None  # when a save will count, and its work

    def passes(seconds: float) -> bool:
        """Let time pass, and warm restarts; False if the job fails before, and work is lost."""
        nonlocal now, failure
        while now + seconds >= failure:
            seconds -= failure - now
            while True:  # a warm restart, which begins anew if another failure comes
                now = failure
                failure = now + float(random.exponential(1 / costs.rate))
                if random.random() >= costs.kept:
                    return False
                if now + costs.warm < failure:
                    now += costs.warm
                    break
        now += seconds
        return True

    is_up = passes(costs.start)
    while True:
        if not is_up:
            if pending is not None and pending[0] <= now:
                done = pending[1]
            pending, position = None, done
            is_up = passes(costs.restart)
            continue
        step = min(interval, work - position)
        if not (is_up := passes(step)):
            continue
        position += step
        if pending is not None and not (is_up := passes(max(0.0, pending[0] - now))):
            continue
        begun = now
        if not (is_up := passes(costs.wait)):
            continue
        if pending is not None:
            done = pending[1]
        pending = begun + costs.counts, position
        if position >= work - 1e-9 and (is_up := passes(pending[0] - now)):
            return now


@settings(max_examples=25, deadline=None)
@given(
    rate=st.floats(0.001, 0.02),
    wait=st.floats(0.0, 5.0),
    late=st.floats(0.0, 20.0),
    start=st.floats(0.0, 30.0),
    restart=st.floats(0.0, 30.0),
    kept=st.floats(0.0, 1.0),
    warm=st.floats(0.0, 5.0),
    interval=st.floats(2.0, 80.0),
    work=st.floats(50.0, 400.0),
    seed=st.integers(0, 1000),
)
def test_the_expectation_is_the_mean_of_simulated_runs(
    rate: float,
    wait: float,
    late: float,
    start: float,
    restart: float,
    kept: float,
    warm: float,
    interval: float,
    work: float,
    seed: int,
) -> None:
    """A save goes on during a warm restart, and the model has it wait: so one of both."""
    kept = 0.0 if late > 10 else kept
    late = 0.0 if kept else late
    costs = Costs(
        **{"rate": rate, "wait": wait, "counts": wait + late},
        **{"start": start, "restart": restart, "kept": kept, "warm": warm},
    )
    expected = expected_seconds(work, interval, costs)
    assume(expected < 8 * work)
    runs = [
        simulated(work, interval, costs, seed * NUM_RUNS + number) for number in range(NUM_RUNS)
    ]
    error = np.std(runs) / math.sqrt(len(runs))
    assert abs(np.mean(runs) - expected) < 5 * error + 1e-6 * expected


COSTS = st.builds(
    lambda rate, wait, late, start, restart: Costs(
        rate=rate, wait=wait, counts=wait + late, start=start, restart=restart
    ),
    st.floats(1e-7, 1e-2),
    st.floats(0.001, 20.0),
    st.floats(0.0, 20.0),
    POSITIVE,
    POSITIVE,
)


@given(costs=COSTS, work=st.floats(10.0, 1e5), interval=st.floats(1.0, 1e4))
def test_without_failures_a_run_takes_its_work_and_its_saves(
    costs: Costs, work: float, interval: float
) -> None:
    num_saves = math.ceil(work / interval - 1e-9)
    alone = dataclasses.replace(costs, rate=0.0)
    at_once = dataclasses.replace(alone, counts=costs.wait)
    expected = costs.start + work + num_saves * costs.wait
    assert expected_seconds(work, interval, at_once) == pytest.approx(expected)
    assume(costs.counts - costs.wait <= min(interval, work - (num_saves - 1) * interval))
    late = costs.counts - costs.wait
    assert expected_seconds(work, interval, alone) == pytest.approx(expected + late)
    rare = dataclasses.replace(costs, rate=1e-12)
    assert expected_seconds(work, interval, rare) == pytest.approx(expected + late, rel=1e-3)


@given(costs=COSTS, num_saves=st.integers(1, 50), interval=st.floats(1.0, 500.0))
def test_saves_that_steps_wait_for_give_daly_s_complete_model(
    costs: Costs, num_saves: int, interval: float
) -> None:
    costs = dataclasses.replace(costs, counts=costs.wait, start=0.0)
    mean = 1 / costs.rate
    daly = mean * math.exp(costs.restart / mean) * math.expm1((interval + costs.wait) / mean)
    found = expected_seconds(num_saves * interval, interval, costs)
    assert found == pytest.approx(num_saves * daly, rel=1e-6)


@given(costs=COSTS, work=st.floats(1e3, 1e6))
def test_no_other_interval_takes_less(costs: Costs, work: float) -> None:
    """Among those that divide the work, as the last one is shorter else."""
    costs = dataclasses.replace(costs, start=0.0)  # which comes once
    best = best_interval(work, costs)
    assert costs.counts - costs.wait - 1e-6 <= best <= work or best == work

    def seconds(interval: float) -> float:
        return expected_seconds(interval * 10**6, interval, costs)

    least = seconds(best) / best
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0):
        other = factor * best
        if other <= work:
            assert seconds(other) / other >= least * (1 - 1e-8)


@given(costs=COSTS)
def test_for_rare_failures_the_best_interval_is_young_s_and_daly_s(costs: Costs) -> None:
    rare = dataclasses.replace(costs, rate=1e-8, counts=costs.wait)
    assert best_interval(1e9, rare) == pytest.approx(young_interval(rare), rel=2e-3)
    assert best_interval(1e9, rare) == pytest.approx(daly_interval(rare), rel=1e-6)


def test_limits() -> None:
    costs = Costs(rate=0.0, wait=2.0, counts=2.0, start=1.0, restart=1.0)
    assert best_interval(100.0, costs) == 100.0
    assert young_interval(costs) == daly_interval(costs) == math.inf
    often = dataclasses.replace(costs, rate=10.0)
    assert daly_interval(often) == 0.1, "the mean time between failures"
    assert expected_seconds(1e6, 1e6, often) == math.inf
    # Daly's own example: 24 h between failures, saves of 5 min.
    known = Costs(rate=1 / 1440, wait=5.0, counts=5.0, start=0.0, restart=10.0)
    assert young_interval(known) == pytest.approx(120.0)
    assert daly_interval(known) == pytest.approx(best_interval(1e5, known), rel=1e-4)
