"""What is marked on the curves, drawn and in words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.marks import MarkKind, describe_marks, find_marks, rate_drops
from pipeline.report.timeline import timeline
from pipeline.run.events import Event
from tests.pipeline.fake_run import RunHistory, event, start_fields, train_fields, write_run
from tests.pipeline.report.report_page import NAMES, page_of


def trains(*rates: float) -> list[Event]:
    """Log intervals with these rates."""
    return [
        event("train", step, step, **train_fields(step) | {"learning_rate": rate})
        for step, rate in enumerate(rates, 1)
    ]


def test_what_happened_is_marked_where_it_did() -> None:
    rows = [
        event("run", 0, **start_fields()),
        event("signal", 10, source="SIGTERM"),
        event("alarm", 15, reason="not_learning", loss=2.3),
        event("alarm", 15, reason="damaged_image", rank=0, sample=1, shard="a", what="cut"),
        event("run", 20, **start_fields(resumed_from=20)),
        *trains(0.1, 0.1, 0.01),
    ]
    marks = find_marks(rows)
    assert marks == {
        "resumed": [2.0],
        "stop requested": [1.0],
        "learning rate lowered": [0.3],
        "alarm": [1.5],
    }
    assert describe_marks(marks) == (
        "resumed at epoch 2; stop requested at epoch 1; learning rate lowered at epoch 0.3; "
        "alarm at epoch 1.5"
    )
    assert tuple(marks) == get_args(MarkKind)


def test_of_many_marks_the_first_are_named_and_the_others_counted() -> None:
    words = describe_marks({"alarm": [number / 4 for number in range(9)]})
    assert words == "alarm at epochs 0, 0.25, 0.5, 0.75, 1 and 4 more"


def test_what_a_later_attempt_did_again_is_not_marked() -> None:
    """A page gives `find_marks` the one history, from which such rows are gone."""
    assert find_marks([event("run", 0, **start_fields()), *trains(0.1, 0.2)]) == {}


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=6, unique=True), st.integers(2, 4))
def test_each_stair_that_is_lower_than_the_one_before_is_a_drop(
    stairs: list[float], length: int
) -> None:
    rows = trains(*(rate for rate in stairs for _ in range(length)))
    lower = [number for number in range(1, len(stairs)) if stairs[number] < stairs[number - 1]]
    assert [row.step for row in rate_drops(rows)] == [number * length + 1 for number in lower]


@given(st.lists(st.floats(1e-6, 1), max_size=20, unique=True))
def test_a_rate_that_is_never_the_same_twice_has_no_drops(rates: list[float]) -> None:
    assert rate_drops(trains(*rates)) == []


def test_a_drop_is_in_the_timeline() -> None:
    (row,) = timeline(trains(0.1, 0.1, 0.01, 0.01))
    assert (row.event.step, row.what, row.detail) == (3, "learning rate lowered", "to 0.01")


@pytest.mark.slow
def test_every_chart_over_which_lines_go_shows_all_kinds_and_says_them(tmp_path: Path) -> None:
    run = write_run(tmp_path, NAMES)
    history = RunHistory(run)
    for step, rate in ((101, 0.1), (102, 0.1), (103, 0.01)):
        history.write("train", step, **train_fields(step) | {"learning_rate": rate})
    history.write("alarm", 103, reason="not_learning", loss=2.3)
    history.close()
    page = page_of(run)
    for chart in page.all("svg")[:3]:
        styles = [path.attributes.get("style", "") for path in chart.all("path")]
        dashes = {
            found[1] for style in styles if (found := re.search(r"dasharray: ([^;]*)", style))
        }
        assert len(dashes) == 3, "a line of each kind differs from the others without its colour"
        assert any("var(--alarm)" in use.attributes["style"] for use in chart.all("use"))
        assert ". Marked: resumed at epoch 4; " in chart.attributes["aria-label"]
    for section in ("curves", "time"):
        (keys,) = page.with_id(section).all("ul", "marks")
        assert [key.text for key in keys.all("li")] == list(get_args(MarkKind))
