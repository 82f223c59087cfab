"""The pure functions behind the report."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.inputs import Predictions
from pipeline.report.predictions import choose_examples, confusion_matrix
from pipeline.report.summary import (
    Summary,
    describe_ranks,
    evaluations,
    find_attempts,
    interval_edges,
    intervals,
)
from pipeline.report.timeline import timeline
from pipeline.run.console import duration
from pipeline.run.events import AlarmReason, EvalEvent, TrainEvent
from pipeline.run.ledger import ledger_of
from pipeline.run.phase import PHASE_LABELS
from tests.pipeline.fake_run import (
    checkpoint_fields,
    eval_fields,
    event,
    start_fields,
    train_fields,
)


def test_pauses_between_attempts_are_no_training_time() -> None:
    summary = Summary(
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


def test_attempts_last_from_the_first_process_to_when_they_were_last_heard_of() -> None:
    """As the start rows say; and each holds its GPUs for so long."""
    cuda = {"device": "cuda"}
    summary = Summary(
        [
            event("start", 0, 105.0, began=100.0, heard=None),
            event("run", 0, 110.0, **start_fields() | cuda | {"world_size": 4}),
            event("train", 10, 160.0, **train_fields(10)),
            event("start", 10, 305.0, began=300.0, heard=180.0),
            event("run", 10, 310.0, **start_fields(resumed_from=10) | cuda),
            event("end", 20, 400.0, outcome="stopped"),
            event("start", 20, 505.0, began=500.0, heard=400.0),
            event("run", 20, 510.0, **start_fields(resumed_from=20)),
            event("end", 30, 600.0, outcome="completed"),
        ]
    )
    assert [attempt.seconds for attempt in summary.attempts] == [80.0, 100.0, 100.0]
    assert summary.pause_seconds == 220.0
    assert summary.gpu_seconds == 4 * 80.0 + 2 * 100.0


def test_a_checkpoint_that_is_written_late_does_not_take_steps_back() -> None:
    summary = Summary(
        [
            event("run", 0, 100.0, **start_fields()),
            event("train", 120, 160.0, **train_fields(120)),
            event("checkpoint", 100, 161.0, **checkpoint_fields("periodic")),
        ]
    )
    assert summary.step == 120


@pytest.mark.parametrize("outcome", ["completed", "stopped", "failed"])
def test_outcome_stands_until_the_next_start(outcome: str) -> None:
    events = [
        event("run", 0, 1.0, **start_fields()),
        event("end", 10, 2.0, outcome=outcome),
        event("eval", 10, 3.0, **eval_fields(5, 9, 10, 10)),
    ]
    assert Summary(events).outcome == outcome
    events.append(event("run", 10, 4.0, **start_fields(resumed_from=10)))
    assert Summary(events).outcome == "unfinished"


def test_an_alarm_is_in_the_timeline() -> None:
    (row,) = timeline([event("alarm", 10, 1.0, reason="not_learning", loss=2.3026)])
    assert (row.what, row.detail) == ("not learning", "the loss of 2.3026 is that of guessing")


def test_every_alarm_that_is_declared_is_in_the_timeline() -> None:
    """With any values that a row can have."""
    known = {"loss": 2.3, "rank": 1, "sample": 7, "shard": "train-000000.tar", "what": "cut off"}
    known |= {"slow": "rank", "host": "n1", "phase": "data_wait", "lag_seconds": 0.25}
    known |= {"tensor": "conv1.weight"}
    nulls = dict.fromkeys(("loss", "sample", "shard", "host", "phase"))
    for reason in get_args(AlarmReason):
        for fields in (known, known | nulls):
            (shown,) = timeline([event("alarm", 10, 1.0, reason=reason, **fields)])
            assert shown.what == reason.replace("_", " ")


@pytest.mark.parametrize(
    ("slow", "expected"),
    [
        ("rank", "rank 1 on n1 in waiting for data, 0.25 s a step"),
        ("loader", "the loader: the delay wanders from rank to rank in waiting for data, 0.25 s"),
        ("unattributed", "unattributed in waiting for data, 0.25 s a step"),
    ],
)
def test_a_straggler_is_named_with_its_phase(slow: str, expected: str) -> None:
    fields = {"rank": 1, "host": "n1", "phase": "data_wait", "lag_seconds": 0.25}
    (row,) = timeline([event("alarm", 10, 1.0, reason="straggler", slow=slow, **fields)])
    assert row.what == "straggler"
    assert row.detail.startswith(expected)


def test_a_start_and_its_run_are_one_attempt() -> None:
    starting = {"began": 1.0, "heard": None}
    events = [
        event("submit", 0, 0.0, to="slurm", job="17"),
        event("start", 0, 2.0, **starting),
        event("start", 0, 4.0, **starting),
        event("run", 0, 5.0, **start_fields()),
        event("train", 10, 9.0, **train_fields(10)),
        event("start", 0, 20.0, **starting),
        event("end", 0, 21.0, outcome="failed", error="no room"),
        event("run", 0, 30.0, **start_fields()),  # as older versions began
    ]
    attempts = find_attempts(events)
    assert [len(attempt.rows) for attempt in attempts] == [1, 3, 2, 1]
    assert [attempt.outcome for attempt in attempts] == ["killed", "killed", "failed", "unfinished"]
    assert attempts[1].detail == "2 × 64 images"


def test_an_attempt_that_failed_before_its_first_row_is_not_the_one_that_was_killed() -> None:
    rows = [
        event("run", 0, 5.0, **start_fields()),
        event("train", 10, 9.0, **train_fields(10)),
        event("end", 10, 31.0, outcome="failed", error="no room", began=30.0),
    ]
    killed, refused = find_attempts(rows)
    assert (killed.outcome, refused.outcome, refused.seconds) == ("killed", "failed", 1)
    ledger = ledger_of(rows)
    assert ledger is not None
    assert ledger.num_attempts == 2


def test_damaged_images_are_reported_and_many_are_counted() -> None:
    fields = {"reason": "damaged_image", "rank": 1, "shard": "train-000000.tar"}
    rows = [
        event("alarm", 10, 1.0, **fields, sample=sample, what=f"member {sample}: cut off")
        for sample in range(1000, 1012)
    ]
    shown = timeline(rows[:2])
    assert [row.detail for row in shown] == [
        "rank 1, sample 1,000 of train: member 1000: cut off",
        "rank 1, sample 1,001 of train: member 1001: cut off",
    ]
    assert [row.what for row in timeline(rows)] == [
        *(["damaged image"] * 3),
        "9 more damaged images",
    ]


def test_attempts_say_how_each_of_them_ended() -> None:
    rows = [
        event("end", 0, 10.0, outcome="failed", error="no such shard set"),
        event("run", 0, 100.0, **start_fields()),
        event("train", 30, 160.0, **train_fields(30)),
        event("run", 20, 200.0, **start_fields(resumed_from=20)),
        event("train", 25, 210.0, **train_fields(25)),
        event("end", 25, 211.0, outcome="failed", error="rank 1: lost"),
        event("run", 20, 300.0, **start_fields(resumed_from=20)),
        event("signal", 40, 340.0, source="SIGTERM"),
        event("end", 40, 341.0, outcome="stopped"),
        event("eval", 20, 5000.0, **eval_fields(5, 9, 10, 10) | {"by": "evaluate"}),
        event("run", 40, 6000.0, **start_fields(resumed_from=40)),
    ]
    found = [
        (each.rows[0].step, each.rows[-1].step, each.seconds, each.outcome, each.detail)
        for each in find_attempts(rows)
    ]
    assert found == [
        (0, 0, 0, "failed", "no such shard set"),
        (0, 30, 60, "killed", "2 × 64 images"),
        (20, 25, 11, "failed", "rank 1: lost"),
        (20, 40, 41, "stopped", "2 × 64 images"),
        (40, 40, 0, "unfinished", "2 × 64 images"),
    ]
    summary = Summary(rows)
    assert summary.training_seconds == 112
    assert (summary.outcome, summary.step) == ("unfinished", 40)
    assert "failed" in [row.what for row in timeline(rows)]


def test_ranks_of_columns_are_not_as_many_replicas() -> None:
    split = start_fields() | {"world_size": 2, "local_batch_size": 16, "global_batch_size": 16}
    assert describe_ranks(event("run", 0, **split)) == "2, a column each: 1 replica × 16 images"
    four = split | {"world_size": 4, "global_batch_size": 64, "accumulation_steps": 2}
    described = describe_ranks(event("run", 0, **four))
    assert described == "4, a column each: 2 replicas × 16 images × 2 accumulated"
    assert describe_ranks(event("run", 0, **start_fields())) == "2 × 64 images"


def test_the_newest_evaluation_is_that_of_the_run() -> None:
    """Whatever made it; one on another shard set is no accuracy of the run, only an event."""
    during = [event("eval", step, step, **eval_fields(step, 60, 100, 100)) for step in (10, 20, 30)]
    later = eval_fields(55, 60, 100, 100) | {"by": "evaluate"}
    again = event("eval", 20, 40.0, **later)
    other = event("eval", 30, 50.0, **later | {"own_shards": False, "shard_set": "ImageNetV2"})
    train = event("eval", 30, 60.0, **later | {"split": "train"})
    rows = [*during, again, other, train]
    summary = Summary(rows)
    assert summary.final is again
    assert summary.best1 is again
    assert evaluations(rows) == [during[0], again, during[2]]
    assert [row.detail for row in timeline(rows)] == [
        "val of generated shapes: top-1 55.00%, top-5 60.00% of 100 images",
        "val of ImageNetV2: top-1 55.00%, top-5 60.00% of 100 images",
        "train of generated shapes: top-1 55.00%, top-5 60.00% of 100 images",
    ]
    ten: EvalEvent = event("eval", 30, 70.0, **later | {"views": 10, "correct1": 40})
    summary = Summary([*rows, ten])
    assert summary.final is ten
    assert summary.best1 is ten, "of as many views only"
    assert evaluations([*rows, ten]) == [during[0], again, during[2]], "the curve is of one view"


def test_a_fork_says_where_it_began() -> None:
    fork = start_fields() | {"forked_from": "runs/a/checkpoints/step-00000040"}
    (row,) = timeline([event("run", 40, 1.0, **fork)])
    assert (row.what, row.event.step) == ("forked", 40)
    assert row.detail.startswith("from runs/a/checkpoints/step-00000040; ranks: 2, cpu")


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
    assert rows[1].event.step == 30
    assert rows[1].detail == "periodic, 15.0 MB in 0.25 s, from step 10 on"


def test_a_fork_has_no_interval_before_it_began() -> None:
    fork = event("run", 40, 1.0, **start_fields() | {"forked_from": "runs/a"})
    rows = [event("train", step, step, **train_fields(step)) for step in (50, 60)]
    resumed = event("run", 50, 55.0, **start_fields(resumed_from=50))
    events = [fork, rows[0], resumed, rows[1]]
    assert interval_edges(events, intervals(events)) == [4, 5, 6]
    lost = events[1:]
    assert interval_edges(lost, intervals(lost)) == [5, 5, 6]


@given(st.integers(0, 3000))
def test_merged_intervals_keep_all_time(num_rows: int) -> None:
    row: TrainEvent = event("train", 1, **train_fields(1))
    rows = [replace(row, step=step, epoch=step / 10) for step in range(1, num_rows + 1)]
    merged = intervals(rows)
    assert len(merged) <= 400
    for label in PHASE_LABELS:
        total = num_rows * train_fields(1)["phase_seconds"][label]
        assert sum(i.phase_seconds[label] or 0 for i in merged) == pytest.approx(total)
    edges = interval_edges(rows, merged)
    assert edges == sorted(edges)
    assert edges[-1] == num_rows / 10


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
        views=1,
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
    assert {example.note for example in examples} >= {
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
