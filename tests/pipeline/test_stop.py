"""Requests to stop: noted by one rank, agreed on by all after the same step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.distributed import World
from pipeline.run_directory import RunDirectory
from pipeline.stop import StopRequests, StopSignals
from tests.pipeline.monitoring import REPOSITORY
from tests.pipeline.ranks import call_on_ranks
from tests.pipeline.worlds import SINGLE

STEP_SECONDS = 0.1
POLL_STEPS = 5
"""Steps of that length between two looks."""


@pytest.fixture
def signals() -> Iterator[StopSignals]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield StopSignals()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def steps_until_agreed(
    stops: StopRequests, first_step: int = 1, seconds: float = STEP_SECONDS, patience: int = 300
) -> tuple[int, str | None]:
    for step in range(first_step, first_step + patience):
        source = stops.agreed(step, seconds)
        if source is not None:
            return step, source
    return step, None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_is_heeded_soon(
    number: signal.Signals, run: RunDirectory, signals: StopSignals
) -> None:
    stops = StopRequests(SINGLE, run, signals)
    assert steps_until_agreed(stops, patience=20) == (20, None)
    os.kill(os.getpid(), number)
    step, source = steps_until_agreed(stops, 21)
    assert source == number.name
    assert step <= 20 + 2 * POLL_STEPS


def test_a_file_is_heeded_soon(run: RunDirectory, signals: StopSignals) -> None:
    stops = StopRequests(SINGLE, run, signals)
    steps_until_agreed(stops, patience=20)
    run.stop_request.touch()
    step, source = steps_until_agreed(stops, 21)
    assert source == "STOP file"
    assert step <= 20 + 2 * POLL_STEPS


def test_a_request_from_before_the_first_step_is_heeded(
    run: RunDirectory, signals: StopSignals
) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    assert steps_until_agreed(StopRequests(SINGLE, run, signals)) == (2, "SIGTERM")


def test_looking_is_rare_when_steps_are_short_and_never_too_rare(
    run: RunDirectory, signals: StopSignals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system is asked every half second, and after 64 steps at the latest."""
    looks: list[Path] = []

    def does_not_exist(path: Path) -> bool:
        looks.append(path)
        return False

    monkeypatch.setattr(Path, "exists", does_not_exist)
    for seconds, expected in ((STEP_SECONDS, 200), (0.001, 17), (10.0, 1000)):
        looks.clear()
        stops = StopRequests(SINGLE, run, signals)
        for step in range(1, 1001):
            assert stops.agreed(step, seconds) is None
        assert expected - 2 <= len(looks) <= expected + 2


def agree(world: World, directory: Path, asked: dict[int, int]) -> tuple[int, str | None]:
    """Rank `r` gets SIGTERM before step `asked[r]`; steps differ in length among the ranks."""
    signals = StopSignals()
    stops = StopRequests(world, RunDirectory(directory), signals)
    for step in range(1, 200):
        if asked.get(world.rank) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        source = stops.agreed(step, STEP_SECONDS * (1 + world.rank))
        if source is not None:
            stops.close()
            return step, source
    stops.close()
    return step, None


def test_all_ranks_stop_after_the_same_step(tmp_path: Path) -> None:
    for asked in ({2: 7}, {0: 50, 1: 51}, {0: 1, 1: 1, 2: 1}):
        outcomes = call_on_ranks(3, agree, tmp_path, asked)
        assert outcomes == [outcomes[0]] * 3
        step, source = outcomes[0]
        assert source == "SIGTERM"
        assert min(asked.values()) < step <= min(asked.values()) + 2 * POLL_STEPS
    assert call_on_ranks(3, agree, tmp_path, {}) == [(199, None)] * 3
    (tmp_path / "STOP").touch()
    assert call_on_ranks(3, agree, tmp_path, {}) == [(2, "STOP file")] * 3


def test_one_ctrl_c_that_comes_twice_is_one(
    signals: StopSignals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal sends it to every process, and torchrun hands its own on to the ranks."""
    now = 100.0
    monkeypatch.setattr("pipeline.stop.time.monotonic", lambda: now)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        now += 0.5
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        pytest.fail("one press ended the process on the spot")
    assert signals.noted
    now += 10
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_ignored_signals_do_not_end_a_process_that_is_leaving() -> None:
    program = (
        "import sys, time; from pipeline.stop import StopSignals;"
        "StopSignals().ignore(); print(flush=True); time.sleep(1); sys.exit(75)"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as child:
        assert child.stdout is not None
        child.stdout.readline()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            child.send_signal(number)
        time.sleep(0.1)
        assert child.wait(60) == 75
