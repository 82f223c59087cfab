"""What rank 0 writes when it has found where its run begins."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from pipeline.data.order.partition import BatchPlan
from pipeline.metrics.declared import HEARTBEAT
from pipeline.metrics.rank_file import Writer, render_rank_file
from pipeline.optim.replica import Replica
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.stop import JOB_BEGIN
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import append, read_rows
from pipeline.run.events import StartEvent, SubmitEvent
from pipeline.run.ledger import ledger_of
from pipeline.run.lock import JobStart
from pipeline.run.settings import Settings
from pipeline.train.start import Start, record_start
from pipeline.train.start import begin as begin_at
from pipeline.train.survival import Held, Memory
from tests.pipeline.fake_run import event, start_fields
from tests.pipeline.worlds import SINGLE

PLAN = BatchPlan(
    num_samples=40, global_batch_size=4, num_replicas=1, accumulation_steps=1, drop_last=True
)
FIRST, SECOND = JobStart(job="7", number=0), JobStart(job="7", number=1)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """One that ran until second 50, and was heard of until second 60."""
    run = RunDirectory(tmp_path / "run")
    run.metrics.mkdir(parents=True)
    append(run.events, event("run", 0, 40.0, **start_fields()))
    append(
        run.events, event("checkpoint", 5, 50.0, path="p", num_bytes=1, seconds=1, reason="best")
    )
    for rank, heartbeat in enumerate(("55.0", "6e1", "1e")):
        writer = Writer.this_process(rank=rank, local_rank=rank, interval_seconds=2)
        page = f'# TYPE x gauge\n{HEARTBEAT.name}{{rank="{rank}"}} {heartbeat}\nx 9e9\n'
        (run.metrics / f"rank-{rank:05d}.prom").write_bytes(render_rank_file(writer, page.encode()))
    (run.metrics / "rank-00009.prom").write_bytes(b"\xff")
    return run


def begin(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, environment: LaunchEnvironment
) -> dict[str, float]:
    monkeypatch.setenv(JOB_BEGIN, "100")
    start = Start(path=run.checkpoints / "step-00000005", forked_from=None)
    record_start(run, start, PLAN, dataclasses.replace(SINGLE, environment=environment))
    row = list(read_rows(run.events))[-1]
    assert isinstance(row, StartEvent)
    assert (row.step, row.epoch, row.heard) == (5, 0.5, 60)
    ledger = ledger_of(read_rows(run.events))
    assert ledger is not None
    return {name: ledger.seconds[name] for name in ("lost", "queued", "down")}


def test_a_job_was_down_since_it_was_last_heard_of(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = begin(run, monkeypatch, LaunchEnvironment(start=FIRST))
    assert found == {"lost": 10, "queued": 0, "down": 40}


def test_a_job_that_was_requeued_was_in_the_queue(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not while torchrun restarted its ranks, or supervisors did."""
    restarts: list[dict[str, Any]] = [{"attempt": 1}, {"began": 70.0}]
    for again in restarts:
        begin(run, monkeypatch, LaunchEnvironment(start=SECOND, **again))
        assert not any(isinstance(row, SubmitEvent) for row in read_rows(run.events))
        run.events.write_text("".join(run.events.read_text().splitlines(keepends=True)[:-1]))
    found = begin(run, monkeypatch, LaunchEnvironment(start=SECOND))
    assert found == {"lost": 10, "queued": 40, "down": 0}


def test_who_goes_on_from_a_checkpoint_forgets_the_step_in_memory(run: RunDirectory) -> None:
    """What is due after that step is not due after the one of the checkpoint."""
    memory = Memory()
    memory.held = mock.Mock(spec=Held)
    known = mock.Mock(spec=Replica), mock.Mock(spec=Settings), 10, PLAN, 20, run, SINGLE
    begin_at(Start(path=None, forked_from=None), *known, memory)
    assert memory.held is None
