"""What the page keeps of a run's events: few points, none of them void."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.run.event_log import history_of, of_type, own_evaluations
from pipeline.run.events import CheckpointEvent, Event, TrainEvent
from pipeline.watch.history import Curve, History
from tests.pipeline.fake_run import (
    checkpoint_fields,
    eval_fields,
    event,
    start_fields,
    train_fields,
)

MOST = 480


@given(
    values=st.lists(
        st.integers(-9, 9).map(float) | st.just(math.nan), min_size=1, max_size=MOST - 1
    ),
    again_from=st.none() | st.integers(0, MOST),
)
def test_of_few_points_each_is_kept(values: list[float], again_from: int | None) -> None:
    curve, expected = Curve(), []
    for step, value in enumerate(values):
        curve.add(step, step / 10, value)
        expected.append((step, step / 10, value))
    if again_from is not None:
        curve.drop_after(again_from)
        expected = [point for point in expected if point[0] <= again_from]
    assert repr(curve.points) == repr(expected)


@pytest.mark.parametrize("num_rows", [MOST, MOST + 1, 1920, 10_007])
def test_of_many_points_neighbours_are_one(num_rows: int) -> None:
    curve = Curve()
    for step in range(num_rows):
        curve.add(step, step / 10, float(step))
    points = curve.points
    assert MOST / 2 <= len(points) <= MOST
    assert points[-1][:2] == (num_rows - 1, (num_rows - 1) / 10)
    before = -1.0
    for last, _, mean in points:  # each is the mean of those after the one before
        assert mean == pytest.approx((before + 1 + last) / 2)
        before = last


def test_a_value_that_is_not_finite_spoils_no_neighbour() -> None:
    curve = Curve()
    for step in range(2 * MOST):
        curve.add(step, step, math.nan if step % 2 else 3.0, math.inf)
    assert {point[2] for point in curve.points} == {3.0}
    assert all(math.isnan(point[3]) for point in curve.points)


def some_events() -> list[Event]:
    """A run that was killed after step 50, and went on from step 30; later it was asked to stop."""
    rows = [event("run", 0, 1.0, **start_fields())]

    def train(begin: int, end: int) -> None:
        for step in range(begin, end + 1, 10):
            rows.append(event("train", step, float(step), **train_fields(step, speed=begin)))
            rows.append(event("eval", step, float(step), **eval_fields(step, step, 100, 100)))

    train(10, 50)
    rows.append(alarm(50, 2))
    rows.append(event("run", 30, 60.0, **start_fields(resumed_from=30)))
    train(40, 60)
    other = {"by": "evaluate", "views": 10}
    rows.append(event("eval", 60, 70.0, **eval_fields(90, 95, 100, 100) | other))
    rows.append(event("signal", 60, 71.0, source="SIGTERM"))
    rows.append(event("checkpoint", 60, 72.0, **checkpoint_fields("preempt")))
    rows.append(event("end", 60, 73.0, outcome="stopped"))
    return rows


def alarm(step: int, rank: int) -> Any:
    what = {"reason": "damaged_image", "rank": rank, "sample": 1, "shard": None, "what": "it ends"}
    return event("alarm", step, float(step), **what)


def test_what_a_later_attempt_has_made_void_is_not_shown() -> None:
    history, rows = History(), some_events()
    for row in rows:
        history.add(row)
    kept = history_of(rows)
    trains = [
        (row.step, row.epoch, row.loss, row.top1, row.images_per_second)
        for row in of_type(kept, TrainEvent)
    ]
    assert history.trains.points == trains
    assert history.evaluations == own_evaluations(kept)
    assert [point[0] for point in history.evaluation_points] == [10, 20, 30, 40, 50, 60]
    assert history.train == of_type(kept, TrainEvent)[-1]
    assert history.step == 60
    assert history.saved == of_type(kept, CheckpointEvent)[-1]
    assert history.marks == {"resumed": [3.0], "stop requested": [6.0]}


def test_what_happened_is_told_newest_first_also_of_void_attempts() -> None:
    history = History()
    for row in some_events():
        history.add(row)
    (told,) = history.told(alarms=True)
    assert told == {"time": 50, "step": 50, "what": "damaged image"} | {
        "text": "rank 2, sample 1 of train: it ends"
    }
    assert [row["what"] for row in history.told(alarms=False)] == [
        *("stopped", "stop requested", "evaluated", "resumed from step 30", "started"),
    ]


def test_a_flood_of_alarms_is_counted_and_hides_nothing_else() -> None:
    history = History()
    history.add(event("run", 0, 1.0, **start_fields(resumed_from=0)))
    for number in range(5000):
        history.add(alarm(number, number))
        history.add(event("checkpoint", number, 1.0, **checkpoint_fields("best")))
        history.add(event("eval", number, 1.0, **eval_fields(1, 2, 3, 3)))
    assert history.num_alarms == 5000
    assert len(history.told(alarms=True)) < 10
    assert [row["what"] for row in history.told(alarms=False)] == ["resumed from step 0"]
    assert history.marks["resumed"] == [0]
    assert len(history.marks["alarm"]) < 300
