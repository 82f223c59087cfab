"""The ledger of a real run of two ranks that is preempted, killed and resumed."""

from __future__ import annotations

import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.metrics.rank_file import last_heartbeat
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import history_of, of_type, read_rows, write_submission
from pipeline.run.events import Event, RunEvent, StartEvent, TrainEvent
from pipeline.run.ledger import Ledger, ledger_of
from tests.integration.training import LONG, train, wait_for_step
from tests.pipeline.monitoring import wait_for

pytestmark = pytest.mark.slow

OPTIONS = (*LONG, "--metrics.publish_seconds", 0.2)

QUEUE_SECONDS = 0.5
"""A process's start is known to 10 ms."""


def ledger(rows: list[Event]) -> Ledger:
    found = ledger_of(rows)
    assert found is not None
    assert sum(found.seconds.values()) == pytest.approx(found.total_seconds, abs=1e-4)
    return found


def total_seconds(row: TrainEvent) -> float:
    return sum(value or 0.0 for value in row.phase_seconds.values())


def step_ratio(row: TrainEvent) -> float:
    """Of the phases in which rank 0 did not wait."""
    waits = ("data_wait", "sync_wait")
    worked = sum(value or 0.0 for name, value in row.phase_seconds.items() if name not in waits)
    return worked / total_seconds(row)


def check_preempted(preempted: Ledger, submitted: float) -> None:
    """A first attempt that waited in a queue and was asked to stop."""
    assert preempted.begin == submitted
    assert preempted.is_queue_known
    assert (preempted.num_attempts, preempted.num_preemptions) == (1, 1)
    assert preempted.seconds["queued"] >= QUEUE_SECONDS - 0.02
    always: Any = ("starting", "loading", "compiling", "steps", "saving", "stopping")
    assert all(preempted.seconds[name] > 0 for name in always), preempted.seconds
    assert preempted.seconds["lost"] == preempted.seconds["down"] == 0


def check_steps(found: Ledger, history: list[Event], last_step: int) -> None:
    """Of the time from row to row, which is that of the phases, steps have their part."""
    expected, rates = 0.0, []
    for before, row in itertools.pairwise(history):
        if isinstance(row, TrainEvent):
            elapsed = total = total_seconds(row)
            if isinstance(before, TrainEvent):
                elapsed = row.time - before.time
                rates.append(elapsed / total)
            expected += elapsed * step_ratio(row)
    assert of_type(history, TrainEvent)[-1].step == last_step
    assert found.seconds["steps"] == pytest.approx(expected, rel=1e-3)
    # Of most rows: where the machine stands still behind a step, its row comes late.
    assert statistics.median(rates) == pytest.approx(1, rel=0.1)


def test_where_the_hours_of_a_run_went(shards: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()

    def rows() -> list[Event]:
        return list(read_rows(run.events))

    submitted = time.time() - QUEUE_SECONDS
    write_submission(run.events, "slurm", "7", submitted)
    with train(2, shards, run.path, *OPTIONS) as job:
        wait_for_step(run.path, 5)
        job.processes[1].terminate()
        assert job.wait() == [75, 75], job.errors
    preempted = ledger(rows())
    check_preempted(preempted, submitted)
    assert preempted.end == rows()[-1].time

    first_step = rows()[-1].step
    with train(2, shards, run.path, *OPTIONS) as job:
        wait_for_step(run.path, first_step + 5, attempt=2)
        last = rows()[-1].time
        wait_for(lambda: (last_heartbeat(run.metrics) or 0.0) > last, "a later sign of life")
        for process in job.processes:
            process.kill()
        job.wait()
    died = last_heartbeat(run.metrics)
    assert died is not None
    killed = rows()
    assert ledger(killed).seconds["lost"] == 0, "nobody has done it again yet"
    assert ledger(killed).seconds["steps"] > preempted.seconds["steps"]
    time.sleep(0.5)

    until = first_step + 20
    with train(2, shards, run.path, *OPTIONS, "--max-steps", until) as job:
        assert job.wait() == [0, 0], job.errors
    resumed = rows()
    found = ledger(resumed)
    assert (found.num_attempts, found.num_preemptions) == (3, 1)
    starts = of_type(resumed, StartEvent)
    assert [start.heard is None for start in starts] == [True, False, False]
    assert starts[2].heard == died
    assert starts[2].began > died
    assert all(start.began < start.time for start in starts)
    begun = of_type(resumed, RunEvent)
    assert [start.resumed_from for start in begun] == [None, first_step, first_step]
    assert all(start.loading_seconds and start.compiling_seconds for start in begun)

    void = [row for row in killed if isinstance(row, TrainEvent) and row.step > first_step]
    assert found.num_lost_steps == void[-1].step - first_step
    of_void = (void[-1].time - void[0].time) + sum(void[0].phase_seconds.values())  # type: ignore[arg-type]
    unlogged = max(0.0, died - killed[-1].time)
    assert found.seconds["lost"] == pytest.approx(of_void + unlogged, rel=0.01, abs=0.02)
    assert found.seconds["down"] >= 0.5
    assert found.seconds["queued"] == preempted.seconds["queued"]

    check_steps(found, history_of(resumed), until)
    assert found.goodput == found.seconds["steps"] / (resumed[-1].time - submitted)
