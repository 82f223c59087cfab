"""Delays in one rank, or in each in turn: who is named, where, and in what metrics."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from pipeline.metrics.rank_file import rank_file_name
from pipeline.run.directory import RunDirectory
from pipeline.run.phase import Phase
from pipeline.train import journal, stragglers
from pipeline.train.clock import StepClock
from pipeline.train.components import Components
from tests.integration import sleepy_train
from tests.integration.training import rows, training
from tests.pipeline.rank_jobs import Job

HOST = socket.gethostname()
STEPS = 16
SECONDS = 0.8
"""That a rank sleeps in each step, by a clock of the test."""


class Clock:
    """Stands still but for those sleeps and a tick at each look, whatever the machine does.

    Ranks that have averaged gradients have waited for the latest of them.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._phase: Phase | None = None

    def look(self, _: StepClock) -> float:
        self.now += 0.001
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def enter(self, plain: Callable[[Components, Phase], None]) -> Any:
        def enter(components: Components, phase: Phase) -> None:
            before, self._phase = self._phase, phase
            if before is Phase.AVERAGING:
                self.now = max(components.world.all_gather_object(self.now))
            plain(components, phase)

        return enter


def be_quick() -> None:
    """Take a delay of few steps for one that lasts, and tell of it once."""
    stragglers.LEAST_STEPS, stragglers.LEAST_SECONDS = 8, 0.0
    clock = Clock()
    mock.patch.object(journal, "_SILENCE_SECONDS", math.inf).start()
    mock.patch.object(sleepy_train, "time", mock.Mock(sleep=clock.sleep)).start()
    mock.patch.object(StepClock, "_now", lambda stepped: clock.look(stepped)).start()
    mock.patch.object(Components, "enter", clock.enter(Components.enter)).start()


def delayed(shards: Path, run: Path, where: str) -> Job:
    options = ("--log_every_steps", 4, "--epochs", 100, "--max-steps", STEPS)
    never = ("--evaluation.every_epochs", 0, "--checkpoint.every_epochs", 0)
    words = training(shards, run, *options, *never)
    sleep = f"{where}:0:{SECONDS}+"
    return Job(2, "tests.integration.sleepy_train", [sleep, "--", *words], before=be_quick)


def series(run: Path, rank: int, name: str) -> dict[str, float]:
    """The values of a metric in a rank's file, by what is in its braces."""
    lines = (RunDirectory(run).metrics / rank_file_name(rank)).read_text().splitlines()
    found = (line.rsplit(" ", 1) for line in lines if line.startswith(name))
    return {labels.removeprefix(name).strip("{}"): float(value) for labels, value in found}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "slow", "rank", "phase"),
    [
        ("1:reading", "rank", 1, "data_wait"),
        ("0:computing", "rank", 0, "forward_backward"),
        ("1:averaging", "unattributed", None, "sync_wait"),
        ("each:reading", "loader", None, "data_wait"),
    ],
)
def test_a_delay_is_named(
    where: str, slow: str, rank: int | None, phase: str, shards: Path, tmp_path: Path
) -> None:
    with delayed(shards, tmp_path, where) as job:
        assert job.wait() == [0, 0], job.errors
    (alarm,) = rows(tmp_path, "alarm")
    expected = ("straggler", slow, rank, None if rank is None else HOST, phase)
    fields = ("reason", "slow", "rank", "host", "phase")
    assert tuple(alarm[field] for field in fields) == expected
    assert alarm["lag_seconds"] == pytest.approx(SECONDS, rel=0.05)
    lines = [line for line in job.outputs[0].splitlines() if line.startswith("warning: ")]
    assert len(lines) == 1
    assert ("rank" if rank is None else f"rank {rank} on {HOST}") in lines[0]
    for number in (0, 1):
        held = [
            labels for labels, on in series(tmp_path, number, "alexnet_straggler").items() if on
        ]
        assert len(held) == (number == rank)
        assert all(f'phase="{phase}",rank="{rank}"' in labels for labels in held)
    assert series(tmp_path, 0, "alexnet_delay_wanders") == {"": slow == "loader"}
    assert series(tmp_path, 0, "alexnet_delay_unattributed") == {"": slow == "unattributed"}
