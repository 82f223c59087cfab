"""The ledger as exporters serve it: read on from scrape to scrape, for one run and for all."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.registry import Collector

from pipeline.metrics.declared import GOODPUT, LEDGER_METRICS, RUN_SECONDS
from pipeline.metrics.ledgers import RunLedger
from pipeline.metrics.node import NodeCollector
from pipeline.metrics.outcomes import RootOutcomes
from pipeline.run import event_tail
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import EventLog, read_rows
from pipeline.run.event_rows import event_of
from pipeline.run.ledger import SECOND_CLASSES, Ledger, ledger_of
from pipeline.run.lock import lock_run
from tests.pipeline.fake_run import event, start_fields, train_fields
from tests.pipeline.monitoring import rank_process

HERE = socket.gethostname()


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "runs" / "run")
    run.path.mkdir(parents=True)
    return run


def write(run: RunDirectory, *rows: Any) -> None:
    log = EventLog(run.events)
    for row in rows:
        log.write(row)
    log.close()


def trained(when: float, step: int) -> Any:
    phases = {"data_wait": 1.0, "forward_backward": 4.0}
    return event("train", step, when, **train_fields(step) | {"phase_seconds": phases})


def samples(collector: Collector) -> dict[tuple[str, str | None, str | None], float]:
    """By name, run and class."""
    names = {metric.name for metric in LEDGER_METRICS}
    return {
        (sample.name, sample.labels.get("run"), sample.labels.get("class")): sample.value
        for family in collector.collect()
        for sample in family.samples
        if sample.name in names
    }


def of_rows(run: RunDirectory, now: float | None = None) -> Ledger | None:
    return ledger_of(read_rows(run.events), now)


def test_each_scrape_reads_what_is_new(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """And comes to what one that reads all rows would say, also when they are replaced."""
    parsed: list[object] = []

    def event_of_row(row: object) -> Any:
        parsed.append(row)
        return event_of(row)

    monkeypatch.setattr(event_tail, "event_of", event_of_row)
    reader = RunLedger(run)
    assert reader.at(0.0, "running") is None, "there are no events yet"
    write(run, event("run", 0, 100.0, **start_fields()))
    write(run, *(trained(100.0 + 5 * number, number) for number in range(1, 2001)))
    assert reader.at(0.0, "killed") == of_rows(run)
    parsed.clear()
    for number in (2001, 2002):
        write(run, trained(100.0 + 5 * number, number))
        found = reader.at(20_000.0, "running")
        assert found is not None
        assert found.end == 20_000
    assert len(parsed) == 2
    assert reader.at(20_000.0, "running") == of_rows(run, 20_000.0)
    run.events.unlink()
    write(run, event("run", 0, 500.0, **start_fields()), trained(505.0, 1))
    assert reader.at(0.0, "stopped") == of_rows(run)


def test_of_a_newer_version_nothing_is_said(run: RunDirectory) -> None:
    reader = RunLedger(run)
    write(run, event("run", 0, 100.0, **start_fields()), trained(105.0, 1))
    assert reader.at(0.0, "running") is not None
    row = {"kind": "run", "step": 1, "epoch": 0, "time": 1, "format_version": 99}
    with run.events.open("a") as file:
        file.write(json.dumps(row) + "\n")
    assert reader.at(0.0, "running") is None
    write(run, trained(110.0, 2))
    assert reader.at(0.0, "running") is None


def test_the_root_serves_every_run_until_it_is_over(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that cannot be read, or is queued for the first time, hides no other."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    root = RootOutcomes(run.path.parent, HERE)
    queued, odd = (
        RunDirectory(run.path.parent / name) for name in ("queued", os.fsdecode(b"\xe9"))
    )
    for each in (queued, odd):
        each.path.mkdir()
    write(queued, event("submit", 0, now - 50, to="slurm", job="7"))
    write(odd, event("run", 0, now - 20, **start_fields()), event("end", 0, now, outcome="stopped"))
    write(run, event("submit", 0, now - 100, to="local", job=None))
    write(run, event("start", 0, now - 90, began=now - 95, heard=None))
    lock = lock_run(run, None, 0)
    found = samples(root)
    assert {name for _, name, _ in found} == {"run", "\ufffd"}
    assert found[RUN_SECONDS.name, "\ufffd", "stopping"] == pytest.approx(20)
    assert found[RUN_SECONDS.name, "run", "starting"] == pytest.approx(100)
    write(run, event("run", 0, now - 80, **start_fields()), trained(now - 75, 5))
    write(run, event("end", 5, now - 70, outcome="stopped"))
    os.close(lock)
    found = samples(root)
    assert [found[RUN_SECONDS.name, "run", name] for name in ("starting", "steps")] == [
        *(pytest.approx(20), pytest.approx(4)),
    ]
    assert found[GOODPUT.name, "run", None] == pytest.approx(4 / 30)
    assert len(found) == 2 * (len(SECOND_CLASSES) + 3)


@pytest.mark.slow
def test_the_exporter_of_rank_0_serves_the_ledger(run: RunDirectory) -> None:
    """That of rank 1 does not. The rank begins from the start: what was done is lost."""
    now = time.time()
    write(run, event("run", 0, now - 10, **start_fields()), trained(now - 5, 5))
    collector = NodeCollector(run, HERE)
    with rank_process(run.path, 1):
        assert samples(collector) == {}
        with rank_process(run.path, 0):
            found = samples(collector)
    assert len(found) == len(SECOND_CLASSES) + 3
    assert found[RUN_SECONDS.name, None, "lost"] == pytest.approx(5)
