"""What a run's events say of its costs."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.run.events import Event
from pipeline.run.measured import costs_of
from tests.pipeline.fake_run import (
    checkpoint_fields,
    eval_fields,
    event,
    start_fields,
    train_fields,
)


def step(number: int, time: float, seconds: float) -> Event:
    phases = {"data_wait": 0.1 * seconds, "forward_backward": 0.9 * seconds}
    row: Event = event("train", number, time, **train_fields(number) | {"phase_seconds": phases})
    return row


def started(
    time: float, began: float, heard: float | None = None, at: int = 0, kept_by: int | None = None
) -> list[Event]:
    run = start_fields(resumed_from=at or None) | ({} if kept_by is None else {"kept_by": kept_by})
    return [
        event("start", at, time, began=began, heard=heard),
        event("run", at, time + 1, **run),
    ]


HISTORY: list[Event] = [
    event("submit", 0, 99.0, to="local", job=None),
    *started(106.0, 100.0),
    step(10, 118.0, 10.0),  # slow, as the first steps are
    step(20, 123.0, 5.0),
    event("eval", 20, 127.0, **eval_fields(1, 2, 10, 10) | {"seconds": 3.0}),
    event("checkpoint", 20, 128.0, **checkpoint_fields("periodic") | {"seconds": 0.5}),
    step(30, 133.0, 5.0),
    *started(145.0, 140.0, heard=136.0, at=20),  # killed
    step(30, 152.0, 5.0),
    event("checkpoint", 30, 155.0, **checkpoint_fields("periodic") | {"seconds": 2.5}),
    step(40, 160.0, 5.0),
    event("end", 40, 163.0, outcome="failed", error="lost"),
    *started(170.0, 165.0, at=30),
    step(40, 178.0, 5.0),
    step(50, 185.0, 7.0),
    event("signal", 50, 185.5, source="SIGTERM"),
    event("end", 50, 186.0, outcome="stopped"),
    event("submit", 50, 1000.0, to="slurm", job="7"),
    *started(1010.0, 1004.0, at=50),
    step(60, 1016.0, 5.0),
]


def test_what_a_run_has_cost() -> None:
    costs = costs_of(HISTORY)
    assert costs.step == pytest.approx((5 + 5 + 5 + 7) / 40)
    assert costs.phases["forward_backward"] == pytest.approx(0.9 * 22 / 40)
    assert costs.evaluation == 4.0, "with what surrounds it"
    assert (costs.save, costs.longest_save) == (2.0, 3.0)
    assert costs.save_wait == costs.save, "steps waited for it"
    assert costs.start == pytest.approx((18.0 + 12.0) / 2 - 5.5), "less 10 steps"
    until_killed, until_stuck = 152.0 - 136.0, 178.0 - 160.0
    restart = (until_killed + until_stuck) / 2 - 5.5
    assert costs.restart == pytest.approx(restart), "from what was heard last, or done"
    assert costs.run is not None
    assert costs.run.resumed_from == 50


def test_of_what_has_not_happened_nothing_is_known() -> None:
    costs = costs_of([])
    assert costs.step is None
    assert costs.run is None
    assert set(costs.for_waits) == {None}
    short = costs_of(HISTORY[:4])
    assert short.step == 1.0, "there is no steadier interval"
    assert short.restart is None


def test_saves_in_the_background_cost_what_steps_wait_for_and_count_later() -> None:
    """Their rows come whenever they are written, behind later steps."""
    fields = checkpoint_fields("periodic") | {"seconds": 3.0, "waited_seconds": 0.25}
    costs = costs_of([*HISTORY[:4], event("checkpoint", 10, 124.0, **fields), HISTORY[4]])
    assert (costs.save_wait, costs.save, costs.longest_save) == (0.25, 3.25, 3.25)


def test_a_save_that_is_waited_for_in_the_end_costs_what_steps_waited() -> None:
    """It began at step 10, and the next save, after step 20, had to wait for it."""
    fields = checkpoint_fields("periodic") | {"seconds": 30.0}
    costs = costs_of([*HISTORY[:5], event("checkpoint", 10, 125.0, **fields)])
    assert (costs.save_wait, costs.save) == (2.0, 30.0)


def test_first_steps_that_take_longer_are_a_part_of_the_start() -> None:
    history = [*started(105.0, 100.0), step(10, 120.0, 10.0), step(20, 125.0, 5.0)]
    costs = costs_of(history)
    assert costs.step == 0.5
    assert costs.start == 120.0 - 10 * 0.5 - 100.0


@given(
    lives=st.lists(
        st.tuples(st.sampled_from([1, 2, 4]), st.booleans(), st.floats(0.1, 9.0)), min_size=1
    )
)
def test_attempts_on_other_ranks_and_pauses_of_people_are_no_costs(
    lives: list[tuple[int, bool, float]],
) -> None:
    """Restarts after `seconds` or, if somebody starts the job by hand, after hours; all are killed.

    Steps take as long as a run on so many ranks takes them.
    """
    rows: list[Event] = []
    now, at = 1000.0, 0
    for world_size, is_paused, seconds in lives:
        now += 7200.0 if is_paused else seconds
        run = start_fields(resumed_from=at or None) | {"world_size": world_size}
        rows.append(event("start", at, now + 1.0, began=now, heard=None))
        rows.append(event("run", at, now + 2.0, **run))
        now += 2.0
        for _ in range(3):
            now, at = now + 10.0 / world_size, at + 10
            rows.append(step(at, now, 10.0 / world_size))
    costs, last = costs_of(rows), lives[-1][0]
    assert costs.run is not None
    assert costs.run.world_size == last
    assert costs.step == pytest.approx(1 / last)
    own = [
        seconds
        for number, (world_size, is_paused, seconds) in enumerate(lives)
        if world_size == last and not is_paused and number
    ]
    expected = statistics.fmean(own) + 2.0 if own else None
    assert costs.restart == (None if expected is None else pytest.approx(expected))
    assert costs.start in (None, pytest.approx(2.0))


@pytest.mark.parametrize("stood", [0.0, 2.0, 300.0])
@pytest.mark.parametrize("kept_by", [None, 0])
def test_what_ranks_stand_still_before_they_are_ended_is_a_cost(
    kept_by: int | None, stood: float
) -> None:
    """After 4 steps that were not logged, of half a second each."""
    end = 125.0 + 4 * 0.5 + stood
    history = [
        *started(105.0, 100.0),
        step(10, 120.0, 10.0),
        step(20, 125.0, 5.0),
        event("end", 24, end, outcome="failed", error="rank 1 hangs"),
        *started(end + 3, end + 1, heard=end + 1, at=24 if kept_by == 0 else 10, kept_by=kept_by),
    ]
    at = 30 if kept_by == 0 else 20
    costs = costs_of([*history, step(at, end + 11, 5.0)])
    done_again = 0.5 * (6 if kept_by == 0 else 10)
    assert costs.restart == (None if kept_by == 0 else stood + 11 - done_again)
    assert costs.warm == (stood + 11 - done_again if kept_by == 0 else None)


def test_an_evaluation_by_hand_is_no_sign_of_life() -> None:
    by_hand = eval_fields(1, 2, 10, 10) | {"by": "evaluate"}
    history = [*HISTORY[:5], event("eval", 20, 900.0, **by_hand), *started(1000.0, 1000.0)]
    costs = costs_of([*history, step(10, 1010.0, 1.0)])
    assert costs.restart is None
    assert costs.start is not None, "somebody started it again"


def test_ranks_that_go_on_from_memory_have_lost_their_restart_alone() -> None:
    """They had done 8 steps since the newest log, of half a second each."""
    history = [*started(105.0, 100.0), step(10, 120.0, 10.0), step(20, 125.0, 5.0)]
    again = [*started(133.0, 132.0, heard=132.0, at=28, kept_by=1), step(30, 136.0, 1.0)]
    costs = costs_of([*history, *again])
    assert costs.warm == 136.0 - 2 * 0.5 - (125.0 + 8 * 0.5)
    assert (costs.restart, costs.kept) == (None, 1.0)
    cold = [*started(140.0, 137.0, heard=136.5, at=20), step(30, 150.0, 5.0)]
    costs = costs_of([*history, *again, *cold])
    assert costs.kept == 0.5
    assert costs.restart is not None


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans())))
def test_the_share_of_evaluations_after_which_a_run_saves(found: list[tuple[int, bool]]) -> None:
    rows: list[Event] = [event("run", 0, 1.0, **start_fields())]
    best, num_best, num_own = -1, 0, 0
    for number, (correct, by_hand) in enumerate(found, 1):
        fields = eval_fields(correct, 9, 9, 9) | {"by": "evaluate" if by_hand else "train"}
        rows.append(event("eval", number, 1.0 + number, **fields))
        num_own += not by_hand
        num_best += not by_hand and correct > best
        best = best if by_hand else max(best, correct)
    assert costs_of(rows).best == (num_best / num_own if num_own else None)
