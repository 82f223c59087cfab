"""The pure functions behind the report."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.metrics import PHASES
from pipeline.report.inputs import Predictions
from pipeline.report.page import duration
from pipeline.report.predictions import choose_examples, confusion_matrix
from pipeline.report.summary import intervals, summarize, timeline
from tests.pipeline.fake_run import checkpoint_fields, eval_fields, start_fields, train_fields


def event(kind: str, step: int, time: float, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "step": step, "epoch": step / 10, "time": time, **fields}


def test_pauses_between_attempts_are_no_training_time() -> None:
    summary = summarize(
        [
            event("run", 0, 100.0, **start_fields()),
            event("train", 10, 160.0, **train_fields(10)),
            event("signal", 10, 161.0, source="SIGTERM"),
            event("end", 10, 162.0, outcome="stopped"),
            event("run", 10, 1000.0, **start_fields(resumed_from=10)),
            event("train", 20, 1050.0, **train_fields(20)),
        ]
    )
    assert summary.training_seconds == 112.0
    assert summary.pause_seconds == 838.0
    assert summary.outcome == "unfinished"
    assert summary.num_stop_requests == 1


@pytest.mark.parametrize("outcome", ["completed", "stopped", "failed"])
def test_outcome_stands_until_the_next_start(outcome: str) -> None:
    events = [
        event("run", 0, 1.0, **start_fields()),
        event("end", 10, 2.0, outcome=outcome),
        event("eval", 10, 3.0, **eval_fields(5, 9, 10, 10)),
    ]
    assert summarize(events).outcome == outcome
    events.append(event("run", 10, 4.0, **start_fields(resumed_from=10)))
    assert summarize(events).outcome == "unfinished"


def test_an_alarm_is_in_the_timeline() -> None:
    (row,) = timeline([event("alarm", 10, 1.0, reason="not_learning", loss=2.3026)])
    assert (row.what, row.detail) == ("not learning", "the loss of 2.3026 is that of guessing")


def test_checkpoints_in_a_row_are_one_line() -> None:
    rows = timeline(
        [
            event("run", 0, 1.0, **start_fields()),
            *(event("checkpoint", s, s, **checkpoint_fields("periodic")) for s in (10, 20, 30)),
            event("checkpoint", 31, 40.0, **checkpoint_fields("preempt")),
            event("end", 31, 41.0, outcome="stopped"),
        ]
    )
    assert [row.what for row in rows] == ["started", "3 checkpoints", "checkpoint", "stopped"]
    assert rows[1].step == 30
    assert rows[1].detail == "periodic, 15.0 MB in 0.25 s, from step 10 on"


@given(st.integers(0, 3000))
def test_merged_intervals_keep_all_time(num_rows: int) -> None:
    merged = intervals(
        [event("train", step, step, **train_fields(step)) for step in range(1, num_rows + 1)]
    )
    assert len(merged) <= 400
    for phase in PHASES:
        total = num_rows * train_fields(1)["phase_seconds"][phase]
        assert sum(i.phase_seconds[phase] for i in merged) == pytest.approx(total)
    edges = [edge for i in merged for edge in (i.first_epoch, i.last_epoch)]
    assert edges == sorted(edges)
    assert not merged or edges[-1] == num_rows / 10


@given(st.integers(1, 60), st.integers(2, 12), st.integers(0, 10_000))
def test_examples_are_distinct_and_counts_complete(
    num_samples: int, num_classes: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, num_classes, num_samples)
    scores = random.random((num_samples, num_classes)).astype(np.float32)
    topk = np.argsort(-scores, axis=1)[:, :5]
    predictions = Predictions(
        step=1,
        labels=labels,
        topk_classes=topk,
        topk_probabilities=np.take_along_axis(scores, topk, axis=1),
    )
    matrix = confusion_matrix(predictions, num_classes)
    assert matrix.sum(axis=1).tolist() == np.bincount(labels, minlength=num_classes).tolist()
    assert np.trace(matrix) == (topk[:, 0] == labels).sum()
    names = [str(label) for label in range(num_classes)]
    examples = choose_examples(predictions, names)
    assert len({example.sample for example in examples}) == len(examples) == min(8, num_samples)
    assert {example.kind for example in examples} >= {
        kind
        for kind, present in (
            ("right", (topk[:, 0] == labels).any()),
            ("wrong", (~(topk == labels[:, None]).any(axis=1)).any()),
        )
        if present
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (59.97, "1 min 00 s"), (119.6, "2 min 00 s"),
     (3599.7, "1 h 00 min"), (11100, "3 h 05 min")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
