"""Requests to stop: noted by one rank, agreed on by all after the same step."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.stop import (
    JOB_BEGIN,
    StopRequests,
    StopSignals,
    begin_of_attempt,
    remove_old_request,
)
from pipeline.ranks.world import World
from pipeline.run.directory import RunDirectory
from pipeline.run.ending import AGENT_VARIABLE, STOP_SIGNALS
from pipeline.run.lock import MAKE_ROOM, JobStart
from pipeline.train.prepare import open_run
from tests.machine import DEADLINE_SECONDS
from tests.pipeline.monitoring import REPOSITORY
from tests.pipeline.rank_jobs import call_on_ranks
from tests.pipeline.worlds import SINGLE

STEP_SECONDS = 0.1
POLL_STEPS = 5
"""Steps of that length between two looks."""


@pytest.fixture
def signals() -> Iterator[StopSignals]:
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield StopSignals()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


class Steps:
    """Steps of chosen lengths, by a clock that nothing else moves."""

    def __init__(self, stops: StopRequests) -> None:
        self._stops = stops
        self._step = 0
        self._now = 100.0

    def _time(self) -> float:
        return self._now

    def until_agreed(self, patience: int, seconds: float = STEP_SECONDS) -> tuple[int, str | None]:
        """The step of the agreement, and what was agreed on, if it comes within `patience`."""
        with mock.patch("pipeline.ranks.stop.time.monotonic", self._time):
            for _ in range(patience):
                self._step += 1
                self._now += seconds
                source = self._stops.agreed(self._step)
                if source is not None:
                    return self._step, source
        return self._step, None


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_heeded_soon(
    number: signal.Signals, run: RunDirectory, signals: StopSignals
) -> None:
    steps = Steps(StopRequests(SINGLE, run, signals))
    assert steps.until_agreed(20) == (20, None)
    os.kill(os.getpid(), number)
    step, source = steps.until_agreed(100)
    assert source == number.name
    assert step <= 20 + 2 * POLL_STEPS


def test_a_file_is_heeded_soon_and_once(run: RunDirectory, signals: StopSignals) -> None:
    steps = Steps(StopRequests(SINGLE, run, signals))
    steps.until_agreed(20)
    run.stop_request.touch()
    step, source = steps.until_agreed(100)
    assert source == "STOP file"
    assert step <= 20 + 2 * POLL_STEPS
    assert not run.stop_request.exists()


def test_a_file_that_was_heeded_holds_until_the_ranks_have_left(
    run: RunDirectory, signals: StopSignals
) -> None:
    """While they save one may be lost, and the others go on with what they have in memory."""
    run.stop_request.touch()
    assert Steps(StopRequests(SINGLE, run, signals)).until_agreed(9) == (2, "STOP file")
    assert not run.stop_request.exists()
    again = StopRequests(SINGLE, run, signals)
    assert Steps(again).until_agreed(9) == (2, "STOP file")


@pytest.mark.parametrize("is_first", [True, False])
def test_a_file_counts_for_more_than_a_signal(
    is_first: bool, run: RunDirectory, signals: StopSignals
) -> None:
    """After the signal alone a SLURM job would go on by itself."""
    steps = Steps(StopRequests(SINGLE, run, signals))
    steps.until_agreed(20)
    if is_first:
        run.stop_request.touch()
    os.kill(os.getpid(), signal.SIGUSR2)
    run.stop_request.touch()
    assert steps.until_agreed(100)[1] == "STOP file"
    assert not run.stop_request.exists()


def test_a_file_that_comes_after_the_signal_stays_for_the_next_start(
    run: RunDirectory, signals: StopSignals
) -> None:
    steps = Steps(StopRequests(SINGLE, run, signals))
    os.kill(os.getpid(), signal.SIGUSR2)
    assert steps.until_agreed(1) == (1, None)
    run.stop_request.touch()
    assert steps.until_agreed(9) == (2, "SIGUSR2")
    assert run.stop_request.exists()


def test_a_hangup_that_nohup_wards_off_asks_for_nothing(run: RunDirectory) -> None:
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        steps = Steps(StopRequests(SINGLE, run, StopSignals()))
        os.kill(os.getpid(), signal.SIGHUP)
        assert steps.until_agreed(20) == (20, None)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_a_request_from_before_the_first_step_is_heeded(
    run: RunDirectory, signals: StopSignals
) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    assert Steps(StopRequests(SINGLE, run, signals)).until_agreed(9) == (2, "SIGTERM")


def test_a_rank_whose_torchrun_was_gone_before_it_could_look_stops(
    run: RunDirectory, signals: StopSignals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a rank imports torch, torchrun may be killed; the parent is then another process."""
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    agents = {"": None, str(os.getppid()): None, str(os.getpid()): "end of torchrun"}
    for agent, source in agents.items():
        monkeypatch.setenv(AGENT_VARIABLE, agent)
        world = dataclasses.replace(SINGLE, environment=LaunchEnvironment.read())
        assert Steps(StopRequests(world, run, signals)).until_agreed(20)[1] == source


def test_only_a_file_from_before_the_start_is_ignored(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is made while a job starts asks that job."""
    run.stop_request.touch()
    with contextlib.ExitStack() as resources:
        open_run(run, LaunchEnvironment(), 0, resources)
    assert run.stop_request.exists()
    assert capsys.readouterr().out == ""
    os.utime(run.stop_request, (0, 0))
    with contextlib.ExitStack() as resources:
        open_run(run, LaunchEnvironment(), 0, resources)
    assert not run.stop_request.exists()
    assert capsys.readouterr().out == f"removed {run.stop_request}: it is older than this job\n"


def is_removed(run: RunDirectory, environment: LaunchEnvironment) -> bool:
    is_old = remove_old_request(run, environment)
    assert run.stop_request.exists() is not is_old
    return is_old


def test_a_file_from_before_this_process_but_not_before_its_job_is_heeded(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came while the nodes were checked, or while ranks that failed were started again."""
    run.stop_request.touch()
    an_hour_ago = time.time() - 3600
    os.utime(run.stop_request, (an_hour_ago, an_hour_ago))
    monkeypatch.setenv(JOB_BEGIN, str(an_hour_ago - 1))
    assert not is_removed(run, LaunchEnvironment())
    monkeypatch.setenv(JOB_BEGIN, str(an_hour_ago + 1))
    assert is_removed(run, LaunchEnvironment())


def test_a_file_that_a_queued_job_finds_is_for_it(run: RunDirectory) -> None:
    """Its first start has removed what was older."""
    again = LaunchEnvironment(start=JobStart(job="7", number=1))
    assert not remove_old_request(run, again)
    run.stop_request.touch()
    os.utime(run.stop_request, (0, 0))
    assert not is_removed(run, again)
    assert is_removed(run, LaunchEnvironment(start=JobStart(job="7", number=0)))
    run.stop_request.write_text(MAKE_ROOM)
    assert is_removed(run, again), "a start that was to take over was killed"


def test_a_file_system_that_does_not_answer_asks_for_nothing(
    run: RunDirectory, signals: StopSignals, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> bool:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Path, "exists", fail)
    assert Steps(StopRequests(SINGLE, run, signals)).until_agreed(20) == (20, None)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every question that the file system is asked."""
    asked: list[Path] = []

    def does_not_exist(path: Path) -> bool:
        asked.append(path)
        return False

    monkeypatch.setattr(Path, "exists", does_not_exist)
    return asked


@pytest.mark.parametrize(
    ("seconds", "least", "most"), [(STEP_SECONDS, 198, 205), (0.001, 15, 30), (10.0, 998, 1000)]
)
def test_looking_is_rare_when_steps_are_short_and_never_too_rare(
    seconds: float,
    least: int,
    most: int,
    run: RunDirectory,
    signals: StopSignals,
    looks: list[Path],
) -> None:
    """The file system is asked every half second, and after 64 steps at the latest."""
    assert Steps(StopRequests(SINGLE, run, signals)).until_agreed(1000, seconds) == (1000, None)
    assert least <= len(looks) <= most


def test_steps_that_become_long_are_noticed_within_two_looks(
    run: RunDirectory, signals: StopSignals, looks: list[Path]
) -> None:
    """As when the first steps were only handed to a device, or each is saved from now on."""
    steps = Steps(StopRequests(SINGLE, run, signals))
    steps.until_agreed(3, 0.001)
    looks.clear()
    steps.until_agreed(20, 1.0)
    assert len(looks) >= 18


def agree(world: World, directory: Path, asked: dict[int, int]) -> tuple[int, str | None]:
    """Rank `r` gets SIGTERM before step `asked[r]`; steps differ in length among the ranks."""
    stops = StopRequests(world, RunDirectory(directory), StopSignals())
    steps = Steps(stops)
    try:
        for step in range(1, 200):
            if asked.get(world.rank) == step:
                os.kill(os.getpid(), signal.SIGTERM)
            step, source = steps.until_agreed(1, STEP_SECONDS * (1 + world.rank))
            if source is not None:
                return step, source
        return step, None
    finally:
        stops.close()


@pytest.mark.slow
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
    monkeypatch.setattr("pipeline.ranks.stop.time.monotonic", lambda: now)
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


@pytest.mark.slow
def test_ignored_signals_do_not_end_a_process_that_is_leaving() -> None:
    program = (
        "import sys; from pipeline.ranks.stop import StopSignals;"
        "StopSignals().ignore(); print(flush=True); sys.stdin.read(); sys.exit(75)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            child.send_signal(number)
        child.communicate(timeout=DEADLINE_SECONDS)  # it leaves when its input ends
        assert child.returncode == 75


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> float:
    """By clocks that stand still: else a moment between a look at one and at another counts."""
    now, since_boot = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
    still = {"time": lambda: now, "clock_gettime": {time.CLOCK_BOOTTIME: since_boot}.__getitem__}
    clocks = mock.Mock(spec=time, CLOCK_BOOTTIME=time.CLOCK_BOOTTIME, **still)
    monkeypatch.setattr("pipeline.ranks.stop.time", clocks)
    return now


def test_an_attempt_begins_with_its_job_or_with_the_restart_of_its_ranks(
    now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a job did before is part of its start; a torchrun that is gone says nothing."""
    monkeypatch.delenv(JOB_BEGIN, raising=False)
    own = begin_of_attempt(LaunchEnvironment())
    assert 0 <= now - own < 24 * 3600
    assert begin_of_attempt(LaunchEnvironment(agent=1)) < own, "init began before"
    assert begin_of_attempt(LaunchEnvironment(agent=1, attempt=1)) == own
    assert begin_of_attempt(LaunchEnvironment(agent=1 << 30)) == own
    monkeypatch.setenv(JOB_BEGIN, str(own - 60))
    assert begin_of_attempt(LaunchEnvironment(agent=os.getpid())) == own - 60
    assert begin_of_attempt(LaunchEnvironment(attempt=1)) == own
    assert begin_of_attempt(LaunchEnvironment(began=own - 30)) == own - 30
    monkeypatch.setenv(JOB_BEGIN, str(own + 60))  # by a clock that was set back after that
    for environment in (LaunchEnvironment(), LaunchEnvironment(attempt=1)):
        assert begin_of_attempt(environment) == own + 60
    assert begin_of_attempt(LaunchEnvironment(began=own)) == own + 60


def test_a_rank_that_is_replaced_belongs_to_the_job_of_its_supervisor(
    run: RunDirectory, now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no torchrun has started that."""
    monkeypatch.delenv(JOB_BEGIN, raising=False)
    began = begin_of_attempt(LaunchEnvironment(supervisor=1))
    assert began < begin_of_attempt(LaunchEnvironment()), "init began before"
    run.stop_request.touch()
    a_moment_later = began + 1
    os.utime(run.stop_request, (a_moment_later, a_moment_later))
    assert not is_removed(run, LaunchEnvironment(supervisor=1, began=now))
