"""Points and edits: whoever makes the edits has what is not void, and nothing twice."""

from __future__ import annotations

import math

import pytest
from hypothesis import given

from pipeline.follow.points import Point, points_of
from pipeline.run.directory import RunDirectory
from pipeline.run.events import Event
from tests.pipeline.fake_run import eval_fields, event
from tests.pipeline.follow.histories import (
    Numbers,
    bits,
    histories,
    make_run,
    numbers_of,
    row,
    story_of,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return make_run(tmp_path_factory.mktemp("runs"))


def numbers_in(points: list[Point]) -> Numbers:
    found: Numbers = {}
    for point in points:
        if isinstance(point.value, float):
            found.setdefault(point.tag, []).append((point.step, point.value))
    return found


@given(rows=histories())
def test_the_newest_attempt_wins_and_edits_lead_there_in_both_readers(
    run: RunDirectory, rows: list[Event]
) -> None:
    """One forgets all from a step on when told; one forgets a tag's when an old step comes."""
    story = story_of(run, rows)
    told: list[Point] = []
    by_tag: list[Point] = []
    for edit in story.edits:
        if edit.forget_from is not None:
            told = [point for point in told if point.step < edit.forget_from]
        told += edit.points
        for new in edit.points:
            by_tag = [old for old in by_tag if old.tag != new.tag or old.step < new.step]
            by_tag.append(new)
    wanted = bits(numbers_of(rows))
    assert bits(numbers_in(told)) == wanted
    left = bits(numbers_in(by_tag))
    for tag, values in wanted.items():
        begin = len(left[tag]) - len(values)
        assert left[tag][begin:] == values
        assert all(step < values[0][0] for step, _ in left[tag][:begin]), "all were void once"
    assert {(point.tag, point.step): point for point in told} == story.points
    assert len(told) == len(story.points)


def test_all_numbers_of_a_row_are_points_but_those_that_are_null() -> None:
    points = {point.tag: point for point in points_of(row(3, "train", 5))}
    assert math.isnan(float(points["train/loss"].value))
    assert points["train/phase_seconds/optimizer"].value == 0.12
    assert "train/grad_norm" not in points
    assert {"train/epoch", "train/top1", "train/learning_rate"} < points.keys()
    assert {(point.step, point.time) for point in points.values()} == {(5, row(3, "train", 5).time)}


@pytest.mark.parametrize(
    ("fields", "tag"),
    [
        ({}, "val/top1"),
        ({"by": "evaluate", "views": 10}, "evaluate/val/views 10/top1"),
        (
            {"by": "evaluate", "own_shards": False, "shard_set": "../V2 (é)/"},
            "evaluate/val/views 1/__V2 (_)_ 00000000/top1".replace("(", "_").replace(")", "_"),
        ),
    ],
)
def test_what_is_evaluated_otherwise_has_a_curve_of_its_own(
    fields: dict[str, object], tag: str
) -> None:
    found = points_of(event("eval", 3, **eval_fields(1, 2, 3, 3) | fields))
    assert tag in {point.tag for point in found}


def test_a_story_knows_parameters_outcome_and_what_happened(run: RunDirectory) -> None:
    kinds = (("start", 0), ("train", 5), ("alarm", 5), ("signal", 5), ("end", 5))
    rows = [row(number, kind, step) for number, (kind, step) in enumerate(kinds)]
    story = story_of(run, rows)
    assert story.parameters["model.name"] == "alexnet_cifar"
    assert story.parameters["recipe"] == "cifar10"
    assert (story.outcome, story.ended) == ("stopped", rows[-1].time)
    assert story.texts() == {
        "alarm/not_learning": "alarm: loss 6.9",
        "run": "signal: source SIGTERM\nend: outcome stopped",
    }
    story.add(row(9, "resume", 5))
    assert (story.outcome, story.ended) == ("running", None)
