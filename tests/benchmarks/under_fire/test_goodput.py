"""What faults have cost, from the times of steps."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.under_fire.goodput import FIRST_STEPS, Caused, measure
from benchmarks.under_fire.history import History, Step
from benchmarks.under_fire.schedule import Kind

PACE = 0.1
BEGIN = 1000.0


def history(*attempts: tuple[float, int], pace: float = PACE) -> History:
    """Attempts whose first step of those that count is done at a time, and how many they do."""
    number = itertools.count(1)
    steps = [
        Step(next(number), attempt, BEGIN + first + pace * place)
        for attempt, (first, num_steps) in enumerate(attempts)
        for place in range(num_steps)
    ]
    begins = [BEGIN + first - 0.01 for first, _ in attempts]
    return History(steps=steps, begins=begins, num_void=0, num_epochs=0)


@given(pace=st.floats(0.01, 1), num_steps=st.integers(FIRST_STEPS + 2, 100))
def test_all_of_an_undisturbed_run_is_productive(pace: float, num_steps: int) -> None:
    found = measure(history((0, num_steps), pace=pace), [])
    assert found.step_seconds == pytest.approx(pace)
    assert found.share == pytest.approx(1)


def test_a_restart_costs_what_was_done_again_and_the_time_without_steps() -> None:
    """Steps 31 to 40 were lost by a kill at 4 s; step 31 is done again at 14 s."""
    run = history((0, 30), (14, 100))
    found = measure(run, [Caused("kill -9", BEGIN + 4)])
    (cost,) = found.costs
    assert found.step_seconds == pytest.approx(PACE)
    assert cost.next_step_seconds == pytest.approx(10)
    assert cost.lost_seconds == pytest.approx(14 - 2.9 - PACE)
    assert cost.num_attempts == 1
    assert found.wall_seconds == pytest.approx(14 + 9.9)
    assert found.share == pytest.approx(1 - cost.lost_seconds / found.wall_seconds)
    assert found.share_of(["kill -9"]) == pytest.approx(1 - cost.lost_seconds / cost.seconds)
    assert found.share_of(["abort"]) is None


def test_a_standstill_counts_and_a_slow_step_is_part_of_the_pace() -> None:
    """A cable that is out for 3 s, and a step of twice the time, which belongs to no fault."""
    times = [PACE * place for place in range(100)]
    times = [time + 3 * (place >= 40) + PACE * (place >= 70) for place, time in enumerate(times)]
    steps = [Step(place + 1, 0, BEGIN + time) for place, time in enumerate(times)]
    run = History(steps=steps, begins=[BEGIN], num_void=0, num_epochs=0)
    found = measure(run, [Caused("partition", BEGIN + 3.95)])
    (cost,) = found.costs
    assert cost.lost_seconds == pytest.approx(3, abs=0.02)
    assert cost.next_step_seconds == pytest.approx(3.05)
    assert cost.num_attempts == 0
    assert PACE < found.step_seconds < 1.02 * PACE


def test_the_last_of_several_attempts_after_a_fault_is_the_one_that_goes_on() -> None:
    run = history((0, 30), (10, 1), (20, 50))
    (cost,) = measure(run, [Caused("SIGSTOP", BEGIN + 3)]).costs
    assert cost.next_step_seconds == pytest.approx(17)
    assert cost.num_attempts == 2
    assert cost.lost_seconds == pytest.approx(20 - 2.9 - 2 * PACE)


@given(
    st.lists(
        st.tuples(st.floats(0.5, 20), st.integers(FIRST_STEPS + 3, 60)), min_size=2, max_size=8
    )
)
def test_what_is_productive_and_what_is_lost_are_all_of_the_time(
    attempts: list[tuple[float, int]],
) -> None:
    kinds: list[Kind] = ["kill -9", "exception"]
    placed: list[tuple[float, int]] = []
    faults: list[Caused] = []
    at = 0.0
    for (pause, num_steps), kind in zip(attempts, itertools.cycle(kinds)):
        if placed:
            faults.append(Caused(kind, BEGIN + at + 0.01))
            at += pause
        placed.append((at, num_steps))
        at += PACE * (num_steps - 1)
    found = measure(history(*placed), faults)
    lost = sum(cost.lost_seconds for cost in found.costs)
    assert found.share == pytest.approx(1 - lost / found.wall_seconds)
    assert [cost.num_attempts for cost in found.costs] == [1] * len(faults)


def test_steps_that_are_all_disturbed_have_no_pace() -> None:
    with pytest.raises(ValueError, match="none of 5 steps was undisturbed"):
        measure(history((0, 5)), [])
