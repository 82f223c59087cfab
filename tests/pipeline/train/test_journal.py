"""What is reported, and where, when something happens in a run."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from data_prep.shard_set.families import exposition
from pipeline.config.schema import Config
from pipeline.data.order.partition import BatchPlan
from pipeline.metrics.job import JobMetrics
from pipeline.run.console import Console
from pipeline.run.directory import RunDirectory
from pipeline.run.ending import StopSource
from pipeline.run.event_log import EventLog, read_events, read_rows
from pipeline.run.events import Event, NotLearning
from pipeline.train.due import Eta
from pipeline.train.journal import Journal
from pipeline.train.progress import Progress
from pipeline.train.stragglers import Delay, sentence_of_delay
from tests.pipeline.fake_run import (
    RunHistory,
    checkpoint_fields,
    eval_fields,
    event,
    start_fields,
    train_fields,
)
from tests.pipeline.rank_process import BUILD, RUN

PLAN = BatchPlan(
    num_samples=100, global_batch_size=10, num_replicas=1, accumulation_steps=1, drop_last=False
)
ETA = Eta(Config(), PLAN, target_steps=20)


def test_gauges_of_a_resumed_run_go_on_with_their_last_values(tmp_path: Path) -> None:
    """Those up to the checkpoint: what a killed attempt did behind it is void."""
    run = RunDirectory(tmp_path)
    earlier = RunHistory(run)
    earlier.write("run", 0, **start_fields())
    for step in (10, 20, 30):
        earlier.write("train", step, **train_fields(step) | {"grad_norm": float(step)})
        earlier.write("eval", step, **eval_fields(step, 90, 100, 100))
        earlier.write("checkpoint", step, **checkpoint_fields("periodic") | {"num_bytes": step})
    earlier.close()
    found: list[Any] = read_events(run.events)
    (trained, evaluated, saved) = found[4:7]
    registry = CollectorRegistry()
    journal = Journal(run.events, Console(None), JobMetrics(registry), PLAN, ETA)
    progress = Progress(step=20, best_top1=0.7, best_top5=0.95)
    resumed = event("run", 20, **start_fields(resumed_from=20))
    journal.started(progress, resumed, 10, BUILD, RUN)
    expected = {
        "alexnet_global_step": 20,
        "alexnet_train_loss": trained.loss,
        "alexnet_train_accuracy_ratio": trained.top1,
        "alexnet_train_grad_norm": 20,
        "alexnet_learning_rate": trained.learning_rate,
        "alexnet_checkpoint_last_step": 20,
        "alexnet_checkpoint_bytes": 20,
        "alexnet_checkpoint_last_success_timestamp_seconds": saved.time,
        "alexnet_resumes_total": 1,
    }
    assert {name: registry.get_sample_value(name) for name in expected} == expected
    of_split = {
        "alexnet_eval_loss": evaluated.loss,
        "alexnet_eval_samples": 100,
        "alexnet_eval_expected_samples": 100,
        "alexnet_eval_last_success_timestamp_seconds": evaluated.time,
    }
    label = {"split": "val"}
    assert {name: registry.get_sample_value(name, label) for name in of_split} == of_split
    for name, top1, top5 in (("eval", 0.2, 0.9), ("best_eval", 0.7, 0.95)):
        for k, accuracy in (("1", top1), ("5", top5)):
            value = registry.get_sample_value(f"alexnet_{name}_accuracy_ratio", label | {"k": k})
            assert value == accuracy


def test_the_newest_evaluation_counts_whatever_made_it(tmp_path: Path) -> None:
    """One of `pipeline.evaluate` too, but none on another shard set; and top-5 only if it says
    something."""
    run = RunDirectory(tmp_path)
    earlier = RunHistory(run)
    earlier.write("run", 0, **start_fields())
    during = eval_fields(20, 90, 100, 100) | {"top5": None, "correct5": None}
    earlier.write("eval", 20, **during)
    earlier.write("eval", 10, **during | {"by": "evaluate", "top1": 0.3})
    earlier.write("eval", 20, **during | {"by": "evaluate", "top1": 0.9, "own_shards": False})
    earlier.close()
    registry = CollectorRegistry()
    journal = Journal(run.events, Console(None), JobMetrics(registry), PLAN, ETA)
    resumed = event("run", 20, **start_fields(resumed_from=20))
    journal.started(Progress(step=20, best_top1=0.3), resumed, 10, BUILD, RUN)
    exposed = exposition(registry).decode()
    assert 'alexnet_eval_accuracy_ratio{k="1",split="val"} 0.3' in exposed
    assert 'k="5"' not in exposed


def test_a_network_that_only_guesses_is_reported_once_until_it_learns(tmp_path: Path) -> None:
    output, registry = io.StringIO(), CollectorRegistry()
    path = tmp_path / "events.jsonl"
    journal = Journal(path, Console(output), JobMetrics(registry), PLAN, ETA)
    shown = []
    for step, is_stuck in enumerate((False, True, True, False, True), 1):
        journal.record_learning(10 * step, 2.3, is_stuck=is_stuck)
        shown.append(registry.get_sample_value("alexnet_not_learning"))
    assert shown == [0, 1, 1, 0, 1]
    events: list[Any] = read_events(path)
    assert [(type(found), found.step) for found in events] == [
        (NotLearning, 20),
        (NotLearning, 50),
    ]
    assert events[0].loss == pytest.approx(2.3)
    lines = output.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("warning: not learning: after 20 steps the loss of 2.3000 is still")


def test_a_delay_is_told_once_a_minute_while_it_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, registry = io.StringIO(), CollectorRegistry()
    path = tmp_path / "events.jsonl"
    journal = Journal(path, Console(output), JobMetrics(registry), PLAN, ETA)
    slow = Delay(slow="rank", rank=1, phase="h2d", lag_seconds=0.5)
    wandering = Delay(slow="loader", phase="data_wait", lag_seconds=0.25)
    told = [(0, slow), (59, slow), (59.5, None), (61, wandering), (120, wandering), (122, slow)]
    for seconds, delay in told:
        monkeypatch.setattr(time, "monotonic", lambda now=seconds: 1000.0 + now)
        journal.record_delay(int(seconds), delay, ["node1", "node2"])
        wanders = registry.get_sample_value("alexnet_delay_wanders")
        assert wanders == (delay is wandering), "at once, whatever has been told"
    events: list[Any] = read_events(path)
    assert [(found.step, found.slow, found.rank, found.host, found.phase) for found in events] == [
        (0, "rank", 1, "node2", "h2d"),
        (61, "loader", None, None, "data_wait"),
        (122, "rank", 1, "node2", "h2d"),
    ]
    assert [found.lag_seconds for found in events] == [0.5, 0.25, 0.5]
    assert [line.partition(" holds")[0] for line in output.getvalue().splitlines()] == [
        "warning: rank 1 on node2",
        f"warning: {sentence_of_delay(wandering, None)}",
        "warning: rank 1 on node2",
    ]


def test_rows_wait_for_a_disk_that_takes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are then written in their order, and with their times."""
    path, is_full, now, write = tmp_path / "events.jsonl", False, 0.0, EventLog.write

    def write_or_fail(log: EventLog, event: Event) -> None:
        if is_full:
            raise OSError(28, "No space left on device")
        write(log, event)

    monkeypatch.setattr(EventLog, "write", write_or_fail)
    monkeypatch.setattr(time, "time", lambda: now)
    journal = Journal(path, Console(None), JobMetrics(CollectorRegistry()), PLAN, ETA)
    for step in range(1, 7):
        is_full, now = step in (2, 3, 5), 100.0 + step
        journal.stop_requested(step, StopSource.SIGTERM)
    assert [row.step for row in read_rows(path)] == [1, 2, 3, 4, 5, 6]
    assert [row.time for row in read_rows(path)] == [101, 102, 103, 104, 105, 106]
