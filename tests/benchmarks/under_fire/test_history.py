"""The proof from events: it follows honest ones, and no planted lie passes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.under_fire.history import History, HistoryError, count_epochs, prove
from pipeline.data.order.partition import BatchPlan
from pipeline.run.events import Event
from tests.pipeline.fake_run import STEPS_PER_EPOCH, event, start_fields, train_fields

Attempts = Sequence[tuple[int, int]]
"""Of each attempt the step that it begins after, and the last that it does."""

SEED = 7

PLAN = BatchPlan(
    num_samples=103, global_batch_size=10, num_replicas=2, accumulation_steps=1, drop_last=True
)


@st.composite
def attempts(draw: st.DrawFn) -> Attempts:
    """Each begins where one before it was, and does some steps or none."""
    found: list[tuple[int, int]] = []
    for _ in range(draw(st.integers(1, 6))):
        begin = draw(st.integers(0, found[-1][1])) if found else 0
        found.append((begin, begin + draw(st.integers(0, 15))))
    return found


def rows_of(attempts: Attempts, num_ranks: int = 2) -> list[Event]:
    rows: list[Event] = []
    for begin, end in attempts:
        fields = start_fields(begin or None)
        fields |= {"world_size": num_ranks, "local_batch_size": 128 // num_ranks}
        rows.append(event("run", begin, **fields))
        rows += [event("train", step, **train_fields(step)) for step in range(begin + 1, end + 1)]
    return rows


def proved(rows: Sequence[Event], last_step: int) -> History:
    return prove(rows, last_step, SEED)


@given(attempts())
def test_the_steps_behind_the_weights_are_those_that_no_later_attempt_began_before(
    attempts: Attempts,
) -> None:
    last_step = attempts[-1][1]
    found = proved(rows_of(attempts), last_step)
    assert [step.number for step in found.kept] == list(range(1, last_step + 1))
    for step in found.kept:
        later = attempts[step.attempt + 1 :]
        begin, end = attempts[step.attempt]
        assert begin < step.number <= end
        assert all(step.number <= begin for begin, _ in later)
    assert len(found.begins) == len(attempts)
    assert len(found.done) == sum(end - begin for begin, end in attempts)
    assert found.num_told_late == 0
    for step in found.done:
        numbered = enumerate(attempts)
        lost_by = [n for n, (begin, _) in numbered if n > step.attempt and begin < step.number]
        assert step.lost_by == min(lost_by, default=None)
    assert found.num_epochs == last_step // STEPS_PER_EPOCH


@given(attempts(), st.data())
def test_a_step_that_is_missing_within_an_attempt_is_found(
    attempts: Attempts, data: st.DataObject
) -> None:
    attempts = [*attempts, (attempts[-1][1], attempts[-1][1] + 2)]
    rows = rows_of(attempts)
    inner = [
        place
        for place in range(len(rows) - 1)
        if {row.kind for row in rows[place : place + 2]} == {"train"}
    ]
    del rows[data.draw(st.sampled_from(inner))]
    with pytest.raises(HistoryError, match=r"step \d+ of attempt \d+ comes on top of step \d+"):
        proved(rows, attempts[-1][1])


@given(attempts(), st.data())
def test_a_step_that_is_there_twice_is_found(attempts: Attempts, data: st.DataObject) -> None:
    attempts = [*attempts, (attempts[-1][1], attempts[-1][1] + 2)]
    rows = rows_of(attempts)
    place = data.draw(st.sampled_from([n for n, row in enumerate(rows) if row.kind == "train"]))
    rows.insert(place, rows[place])
    with pytest.raises(HistoryError, match=r"step \d+ of attempt \d+ comes on top of step \d+"):
        proved(rows, attempts[-1][1])


@given(attempts(), st.integers(2, 5))
def test_an_attempt_that_begins_after_steps_that_nothing_tells_of_is_found(
    attempts: Attempts, gap: int
) -> None:
    end = attempts[-1][1]
    rows = rows_of([*attempts, (end + gap, end + gap + 3)])
    with pytest.raises(HistoryError, match=rf"begins after step {end + gap}, and .* {end} steps"):
        proved(rows, end + gap + 3)


@given(attempts(), st.integers(1, 30))
def test_a_step_whose_log_was_lost_with_a_rank_is_told_of_by_the_next_attempt(
    attempts: Attempts, num_steps: int
) -> None:
    end = attempts[-1][1]
    found = proved(rows_of([*attempts, (end + 1, end + num_steps)]), end + num_steps)
    assert [step.number for step in found.kept] == list(range(1, end + num_steps + 1))
    assert found.kept[end].attempt == len(attempts) - 1
    assert found.num_told_late == 1


def test_the_first_attempt_begins_after_no_step_that_none_before_it_has_done() -> None:
    with pytest.raises(HistoryError, match=r"attempt 0 begins after step 1, and .* 0 steps"):
        proved(rows_of([(1, 5)]), 5)


@given(attempts(), st.integers(-3, 3).filter(bool))
def test_weights_of_another_step_are_found(attempts: Attempts, off_by: int) -> None:
    last_step = attempts[-1][1]
    with pytest.raises(HistoryError, match="the weights are those after"):
        proved(rows_of(attempts), last_step + off_by)


def test_events_without_a_beginning_prove_nothing() -> None:
    with pytest.raises(HistoryError, match="step 1 comes before any 'run' row"):
        proved(rows_of([(0, 3)])[1:], 3)
    with pytest.raises(HistoryError, match="0 steps"):
        proved([], 3)


def test_ranks_may_change_and_the_batch_may_not() -> None:
    rows = rows_of([(0, 8)]) + rows_of([(8, 20)], num_ranks=4)
    assert proved(rows, 20).num_epochs == 2
    other = start_fields(8) | {"global_batch_size": 64, "local_batch_size": 32}
    other |= {"steps_per_epoch": 20}
    changed = [*rows_of([(0, 8)]), event("run", 8, **other)]
    with pytest.raises(HistoryError, match="samples, batch and steps of an epoch"):
        proved(changed, 8)


@given(num_epochs=st.integers(1, 3), extra=st.integers(0, PLAN.steps_per_epoch - 1))
def test_each_sample_is_there_once_an_epoch(num_epochs: int, extra: int) -> None:
    updates = list(range(num_epochs * PLAN.steps_per_epoch + extra))
    assert count_epochs(PLAN, updates, SEED) == num_epochs


@given(
    place=st.integers(0, PLAN.steps_per_epoch - 1), other=st.integers(1, PLAN.steps_per_epoch - 1)
)
def test_a_step_in_the_place_of_another_is_samples_twice(place: int, other: int) -> None:
    updates = list(range(PLAN.steps_per_epoch))
    updates[place] = (place + other) % PLAN.steps_per_epoch
    with pytest.raises(HistoryError, match="was there 2 times in epoch 0"):
        count_epochs(PLAN, updates, SEED)
