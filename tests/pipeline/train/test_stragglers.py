"""Who is named for a delay: simulated ranks whose truth is known, and never a wrong one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.run.phase import PHASE_LABELS, Label
from pipeline.train.rank_sums import RankTimes, waiting_label
from pipeline.train.stragglers import (
    LEAST_SECONDS,
    LEAST_STEPS,
    Delay,
    Stragglers,
    sentence_of_delay,
)

Seconds = npt.NDArray[np.float64]
Delays = Callable[[Seconds], dict[Label, Seconds]]
"""From zeros [steps, ranks] to what is added to phases."""

BASE: dict[Label, float] = {
    "data_wait": 0.02,
    "h2d": 0.02,
    "forward_backward": 0.5,
    "optimizer": 0.04,
    "other": 0.02,
}
AVERAGING = 0.1
STEP = sum(BASE.values()) + AVERAGING
STEPS = 10
OWN_PHASES: list[Label] = list(BASE)
LASTING = LEAST_STEPS // STEPS + 1
"""Intervals after which a delay has lasted, with one to spare."""
assert LEAST_STEPS * STEP > LEAST_SECONDS

seeds = st.integers(0, 2**32)
numbers_of_ranks = st.integers(2, 64)


def no_delay(_: Seconds) -> dict[Label, Seconds]:
    return {}


def of_rank(rank: int, phase: Label, seconds: float) -> Delays:
    def delays(zeros: Seconds) -> dict[Label, Seconds]:
        zeros[:, rank] = seconds
        return {phase: zeros}

    return delays


def in_turn(rng: np.random.Generator, phase: Label, seconds: float) -> Delays:
    """Of one rank in each step, drawn anew."""

    def delays(zeros: Seconds) -> dict[Label, Seconds]:
        steps, ranks = zeros.shape
        zeros[np.arange(steps), rng.integers(ranks, size=steps)] = seconds
        return {phase: zeros}

    return delays


def interval(
    rng: np.random.Generator,
    num_ranks: int,
    delays: Delays = no_delay,
    *,
    split: bool = False,
    noise: float = 0.1,
    averaging: float = AVERAGING,
    steps: int = STEPS,
    slower: float = 1.0,
) -> list[RankTimes]:
    """A log interval of ranks that step together; `noise` is relative, of each phase and step.

    All takes `slower` times as long.
    """
    shape = steps, num_ranks
    times = {name: base * (1 + noise * rng.exponential(size=shape)) for name, base in BASE.items()}
    for name, more in delays(np.zeros(shape)).items():
        times[name] = times[name] + more
    before = sum(times[name] for name in times if name != "forward_backward")
    ends = before + times["forward_backward"]
    if split:  # both ranks of a replica end their passes together
        ends = np.repeat(ends.reshape(steps, -1, 2).max(2), 2, axis=1)
        times["forward_backward"] = ends - before
    is_lone = split and num_ranks == 2
    averaged = ends.max(1, keepdims=True) + averaging * (1 + noise * rng.exponential(size=shape))
    times["sync_wait"] = np.zeros(shape) if is_lone else averaged - ends
    ranks = [RankTimes(waits_in=waiting_label(num_ranks, 1 + split)) for _ in range(num_ranks)]
    for step, (number, rank) in itertools.product(range(steps), enumerate(ranks)):
        rank.add({name: slower * float(times[name][step, number]) for name in PHASE_LABELS})
    return ranks


def last(intervals: Iterable[list[RankTimes]], stragglers: Stragglers | None = None) -> Any:
    """What holds after the last of them."""
    stragglers = stragglers or Stragglers(1)
    return [stragglers.look(ranks) for ranks in intervals][-1]


def repeated(number: int, *arguments: Any, **options: Any) -> Iterable[list[RankTimes]]:
    return (interval(*arguments, **options) for _ in range(number))


def who(delay: Delay | None) -> tuple[object, ...] | None:
    return None if delay is None else (delay.slow, delay.rank, delay.phase)


@settings(max_examples=20, deadline=None)
@given(seeds, numbers_of_ranks, st.sampled_from(OWN_PHASES), st.floats(0.4, 3), st.data())
def test_a_rank_that_is_always_slower_is_named_with_its_phase(
    seed: int, num_ranks: int, phase: Label, share: float, data: st.DataObject
) -> None:
    rng, rank = np.random.default_rng(seed), data.draw(st.integers(0, num_ranks - 1))
    delays = of_rank(rank, phase, share * STEP)
    found = last(repeated(LASTING, rng, num_ranks, delays))
    assert who(found) == ("rank", rank, phase)
    assert found.lag_seconds == pytest.approx(share * STEP, rel=0.3)


@settings(max_examples=20, deadline=None)
@given(seeds, numbers_of_ranks, st.booleans(), st.floats(0, 0.4))
def test_ranks_that_are_well_are_left_alone(
    seed: int, num_ranks: int, split: bool, noise: float
) -> None:
    rng, num_ranks = np.random.default_rng(seed), num_ranks + num_ranks % 2
    stragglers = Stragglers(1 + split)
    intervals = repeated(2 * LASTING, rng, num_ranks, split=split, noise=noise)
    assert {stragglers.look(ranks) for ranks in intervals} == {None}


@settings(max_examples=20, deadline=None)
@given(seeds, numbers_of_ranks, st.floats(0.4, 3))
def test_a_delay_of_data_that_wanders_is_the_loader(
    seed: int, num_ranks: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    delays = in_turn(rng, "data_wait", share * STEP)
    found = last(repeated(2 * LASTING, rng, num_ranks, delays))
    assert who(found) == ("loader", None, "data_wait")
    assert found.lag_seconds == pytest.approx(share * STEP, rel=0.3)


def test_so_is_one_that_moves_between_log_intervals() -> None:
    rng, stragglers = np.random.default_rng(0), Stragglers(1)
    found = [
        stragglers.look(interval(rng, 4, of_rank(number % 4, "data_wait", STEP)))
        for number in range(3 * LASTING)
    ]
    assert {who(delay) for delay in found} == {None, ("loader", None, "data_wait")}


@settings(max_examples=20, deadline=None)
@given(seeds, numbers_of_ranks, st.sampled_from(OWN_PHASES[1:]), st.floats(0.1, 5))
def test_no_rank_is_named_for_another_delay_that_wanders(
    seed: int, num_ranks: int, phase: Label, share: float
) -> None:
    rng, stragglers = np.random.default_rng(seed), Stragglers(1)
    delays = in_turn(rng, phase, share * STEP)
    found = [stragglers.look(ranks) for ranks in repeated(3 * LASTING, rng, num_ranks, delays)]
    assert {delay.slow for delay in found if delay} <= {"unattributed"}


@pytest.mark.parametrize("num_ranks", [2, 3, 16])
def test_a_delay_in_averaging_is_unattributed(num_ranks: int) -> None:
    """Of one rank or of the network: all ranks wait for longer than they did before."""
    rng, stragglers = np.random.default_rng(1), Stragglers(1)
    assert last(repeated(2 * LASTING, rng, num_ranks), stragglers) is None
    slower = repeated(LASTING, rng, num_ranks, averaging=AVERAGING + 0.5 * STEP)
    found = last(slower, stragglers)
    assert who(found) == ("unattributed", None, "sync_wait")
    assert found.lag_seconds == pytest.approx(0.5 * STEP, rel=0.2)


@pytest.mark.parametrize("slower", [0.3, 5.0])
def test_a_machine_that_becomes_slower_or_faster_is_no_delay(slower: float) -> None:
    """As when another program starts or ends: all takes longer, averaging too."""
    rng, stragglers = np.random.default_rng(9), Stragglers(1)
    averaging = 0.5 * STEP  # much of the step
    assert last(repeated(2 * LASTING, rng, 4, averaging=averaging), stragglers) is None
    changed = repeated(2 * LASTING, rng, 4, averaging=averaging, slower=slower)
    assert {stragglers.look(ranks) for ranks in changed} == {None}


def test_so_is_one_from_the_start_that_takes_most_of_the_step() -> None:
    rng = np.random.default_rng(2)
    assert last(repeated(LASTING, rng, 4, averaging=AVERAGING + 0.3 * STEP)) is None
    found = last(repeated(LASTING, rng, 4, averaging=2 * STEP))
    assert who(found) == ("unattributed", None, "sync_wait")


@pytest.mark.parametrize("num_ranks", [4, 8, 64])
def test_of_two_slow_ranks_none_is_named(num_ranks: int) -> None:
    def delays(zeros: Seconds) -> dict[Label, Seconds]:
        zeros[:, (1, 3)] = STEP
        return {"forward_backward": zeros}

    found = last(repeated(LASTING, np.random.default_rng(3), num_ranks, delays))
    assert who(found) == ("unattributed", None, None)


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(1, 16), st.sampled_from(OWN_PHASES), st.floats(0.5, 3), st.data())
def test_of_ranks_that_share_replicas_the_neighbour_is_never_named(
    seed: int, num_replicas: int, phase: Label, share: float, data: st.DataObject
) -> None:
    """It waits for the slow one in its passes; in these nobody can tell which of both is slow."""
    rng, num_ranks = np.random.default_rng(seed), 2 * num_replicas
    rank = data.draw(st.integers(0, num_ranks - 1))
    delays = of_rank(rank, phase, share * STEP)
    found = last(repeated(LASTING + 1, rng, num_ranks, delays, split=True), Stragglers(2))
    if phase != "forward_backward":
        assert who(found) == ("rank", rank, phase)
    elif num_replicas == 1:
        assert found is None  # both have longer passes, and there is nothing to compare them with
    else:
        assert who(found) == ("unattributed", None, None)
        assert found.replica == rank // 2


@settings(max_examples=100, deadline=None)
@given(seeds, numbers_of_ranks, st.sampled_from(OWN_PHASES), st.floats(0, 2), st.floats(0, 1))
def test_a_rank_that_is_named_is_the_right_one(
    seed: int, num_ranks: int, phase: Label, share: float, frequency: float
) -> None:
    """However seldom it is slow, and however much the others are by chance."""
    rng, stragglers = np.random.default_rng(seed), Stragglers(1)

    def delays(zeros: Seconds) -> dict[Label, Seconds]:
        zeros[:, -1] = share * STEP * (rng.random(len(zeros)) < frequency)
        return {phase: zeros}

    found = {who(stragglers.look(interval(rng, num_ranks, delays, noise=0.3))) for _ in range(4)}
    assert {one[1] for one in found if one is not None} <= {None, num_ranks - 1}


def test_a_delay_is_found_when_it_has_lasted_and_is_over_when_it_is() -> None:
    rng, stragglers = np.random.default_rng(5), Stragglers(1)
    slow = of_rank(0, "data_wait", 0.4 * STEP)
    assert last(repeated(LASTING, rng, 2), stragglers) is None
    found = [stragglers.look(interval(rng, 2, slow)) for _ in range(LASTING)]
    assert found[0] is None
    assert who(found[-1]) == ("rank", 0, "data_wait")
    half = of_rank(0, "data_wait", 0.15 * STEP)  # would not be found, but has been
    assert who(last(repeated(LASTING, rng, 2, half), stragglers)) == ("rank", 0, "data_wait")
    assert stragglers.look(interval(rng, 2)) is None
    assert last(repeated(LASTING, rng, 2, half), stragglers) is None


@pytest.mark.parametrize("num_ranks", [2, 8])
def test_one_long_stall_is_no_straggler(num_ranks: int) -> None:
    def stall(zeros: Seconds) -> dict[Label, Seconds]:
        zeros[3, 1] = 100 * STEP
        return {"data_wait": zeros}

    rng, stragglers = np.random.default_rng(6), Stragglers(1)
    intervals = [interval(rng, num_ranks) for _ in range(LASTING)]
    intervals += [interval(rng, num_ranks, stall)]
    intervals += [interval(rng, num_ranks) for _ in range(LASTING)]
    assert {stragglers.look(ranks) for ranks in intervals} == {None}


def test_short_log_intervals_are_taken_together() -> None:
    rng, stragglers = np.random.default_rng(7), Stragglers(1)
    slow = of_rank(1, "h2d", STEP)
    found = [who(stragglers.look(interval(rng, 2, slow, steps=1))) for _ in range(LEAST_STEPS)]
    assert found == [None] * (LEAST_STEPS - 1) + [("rank", 1, "h2d")]


def test_a_rank_alone_holds_up_nobody() -> None:
    rng = np.random.default_rng(8)
    slow = of_rank(0, "h2d", 10 * STEP)
    assert last(repeated(LASTING, rng, 1, slow)) is None


@pytest.mark.parametrize(
    ("delay", "sentence"),
    [
        (
            Delay(slow="rank", rank=1, phase="data_wait", lag_seconds=0.25),
            "rank 1 on node7 holds up the others by 0.250 s a step (waiting for data)",
        ),
        (
            Delay(slow="loader", phase="data_wait", lag_seconds=0.25),
            "ranks wait for data in turn, and for each other, 0.250 s a step: the loader is slow",
        ),
        (
            Delay(slow="unattributed", phase="sync_wait", lag_seconds=0.25),
            "ranks wait for each other, 0.250 s a step: averaging is slow, for one rank or for all",
        ),
        (
            Delay(slow="unattributed", lag_seconds=0.25),
            "ranks wait for each other, 0.250 s a step: no single rank is to blame",
        ),
        (
            Delay(slow="unattributed", replica=2, lag_seconds=0.25),
            "ranks wait for each other, 0.250 s a step: one of replica 2 is slow, but it is not "
            "known which",
        ),
    ],
)
def test_what_is_said_of_a_delay(delay: Delay, sentence: str) -> None:
    assert sentence_of_delay(delay, "node7") == sentence
