"""What is told, and where, when something happens in a run."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from pipeline.console import Console
from pipeline.data.partition import BatchPlan
from pipeline.eta import Eta
from pipeline.events import read_events
from pipeline.journal import Journal
from pipeline.metrics import JobMetrics

PLAN = BatchPlan(
    num_samples=100, global_batch_size=10, num_replicas=1, accumulation_steps=1, drop_last=False
)
ETA = Eta(steps_per_epoch=10, target_steps=20, evaluation_epochs=1, checkpoint_epochs=1)


def test_a_network_that_only_guesses_is_told_once_until_it_learns(tmp_path: Path) -> None:
    output, registry = io.StringIO(), CollectorRegistry()
    path = tmp_path / "events.jsonl"
    journal = Journal(path, Console(output), JobMetrics(registry), PLAN, ETA)
    shown = []
    for step, is_stuck in enumerate((False, True, True, False, True), 1):
        journal.watched_learning(10 * step, 2.3, is_stuck=is_stuck)
        shown.append(registry.get_sample_value("alexnet_not_learning"))
    assert shown == [0, 1, 1, 0, 1]
    events = read_events(path)
    assert [(event["kind"], event["step"]) for event in events] == [("alarm", 20), ("alarm", 50)]
    assert events[0]["reason"] == "not_learning"
    assert events[0]["loss"] == pytest.approx(2.3)
    lines = output.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("warning: not learning: after 20 steps the loss of 2.3000 is still")
