"""What faults have cost, from the times of steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.under_fire.goodput import FIRST_STEPS, Caused, measure
from benchmarks.under_fire.history import History, Step
from benchmarks.under_fire.schedule import ENDS_A_RANK

PACE = 0.1
BEGIN = 1000.0


def history(*attempts: tuple[float, int, int], pace: float = PACE) -> History:
    """Of each attempt: when its first step is done, the step it begins after, and its last one."""
    done = []
    for attempt, (first, begin, end) in enumerate(attempts):
        for number in range(begin + 1, end + 1):
            later = range(attempt + 1, len(attempts))
            lost_by = next((other for other in later if attempts[other][1] < number), None)
            time = BEGIN + first + pace * (number - begin - 1)
            done.append(Step(number, attempt, time, lost_by))
    begins = [BEGIN + first - 0.01 for first, _, _ in attempts]
    return History(done=done, begins=begins, num_told_late=0, num_epochs=0)


@given(pace=st.floats(0.01, 1), num_steps=st.integers(FIRST_STEPS + 2, 100))
def test_all_of_an_undisturbed_run_is_productive(pace: float, num_steps: int) -> None:
    found = measure(history((0, 0, num_steps), pace=pace), [])
    assert found.step_seconds == pytest.approx(pace)
    assert found.share == pytest.approx(1)


def test_a_restart_costs_what_was_done_again_and_the_time_without_steps() -> None:
    """A kill at 4 s loses steps 31 to 40; step 31 is done again at 14 s."""
    run = history((0, 0, 40), (14, 30, 130))
    found = measure(run, [Caused("kill -9", BEGIN + 4)])
    (cost,) = found.costs
    assert found.step_seconds == pytest.approx(PACE)
    assert cost.next_step_seconds == pytest.approx(10)
    assert cost.lost_seconds == pytest.approx(14 - 3.0), "step 31 would have been done at 3 s"
    assert cost.num_attempts == 1
    assert found.wall_seconds == pytest.approx(14 + 9.9)
    assert found.share == pytest.approx(1 - cost.lost_seconds / found.wall_seconds)
    assert found.share_of(["kill -9"]) == pytest.approx(1 - cost.lost_seconds / cost.seconds)
    assert found.share_of(["abort"]) is None


def test_a_standstill_counts_and_a_slow_step_is_part_of_the_pace() -> None:
    """A cable that is out for 3 s, and a step of twice the time, which belongs to no fault."""
    times = [PACE * place for place in range(100)]
    times = [time + 3 * (place >= 40) + PACE * (place >= 70) for place, time in enumerate(times)]
    done = [Step(place + 1, 0, BEGIN + time) for place, time in enumerate(times)]
    run = History(done=done, begins=[BEGIN], num_told_late=0, num_epochs=0)
    found = measure(run, [Caused("partition", BEGIN + 3.95)])
    (cost,) = found.costs
    assert cost.lost_seconds == pytest.approx(3, abs=0.02)
    assert cost.next_step_seconds == pytest.approx(3.05)
    assert cost.num_attempts == 0
    assert PACE < found.step_seconds < 1.02 * PACE


def test_the_last_of_several_attempts_after_a_fault_is_the_one_that_goes_on() -> None:
    run = history((0, 0, 30), (10, 30, 31), (20, 31, 81))
    (cost,) = measure(run, [Caused("SIGSTOP", BEGIN + 3)]).costs
    assert cost.next_step_seconds == pytest.approx(17)
    assert cost.num_attempts == 2
    assert cost.lost_seconds == pytest.approx(20 - 2.9 - 2 * PACE)


def test_steps_that_are_done_again_count_for_the_fault_that_lost_them() -> None:
    """The first fault loses nothing, and the second all that was done since the beginning."""
    run = history((0, 0, 20), (5, 20, 40), (12, 0, 100))
    first, second = measure(run, [Caused("abort", BEGIN + 2), Caused("kill -9", BEGIN + 7)]).costs
    assert first.lost_seconds == pytest.approx(5 - 1.9 - PACE)
    assert second.lost_seconds == pytest.approx(12 - 6.9 - PACE + 40 * PACE)
    assert (first.num_attempts, second.num_attempts) == (1, 1)


@given(st.data())
def test_what_is_productive_and_what_is_lost_are_all_of_the_time(data: st.DataObject) -> None:
    placed = [(0.0, 0, data.draw(st.integers(FIRST_STEPS + 3, 60)))]
    faults: list[Caused] = []
    at = PACE * (placed[0][2] - 1)
    for kind in data.draw(st.lists(st.sampled_from(ENDS_A_RANK), min_size=1, max_size=6)):
        faults.append(Caused(kind, BEGIN + at + 0.01))
        at += data.draw(st.floats(0.5, 20))
        begin = data.draw(st.integers(0, placed[-1][2]))
        end = begin + data.draw(st.integers(FIRST_STEPS + 3, 60))
        placed.append((at, begin, end))
        at += PACE * (end - begin - 1)
    found = measure(history(*placed), faults)
    lost = sum(cost.lost_seconds for cost in found.costs)
    assert found.share == pytest.approx(1 - lost / found.wall_seconds)
    assert found.share_of(ENDS_A_RANK) == pytest.approx(
        1 - lost / sum(cost.seconds for cost in found.costs)
    )
    assert [cost.num_attempts for cost in found.costs] == [1] * len(faults)


def test_steps_that_are_all_disturbed_have_no_pace() -> None:
    with pytest.raises(ValueError, match="none of 5 steps was undisturbed"):
        measure(history((0, 0, 5)), [])
