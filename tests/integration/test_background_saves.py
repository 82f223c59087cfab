"""Checkpoints that are written while the steps go on: what is in them, and what becomes of them."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from pipeline.ranks import stop
from pipeline.ranks.failure import RankFailure
from pipeline.ranks.stop import StopSignals
from pipeline.run import checkpoint
from pipeline.run.directory import RunDirectory
from pipeline.run.ending import ExitCode, StopSource
from pipeline.train import loop, snapshot
from pipeline.train.__main__ import train as train_as_rank
from pipeline.train.command import parse_command
from pipeline.train.journal import Journal
from pipeline.train.progress import Progress
from pipeline.train.saving import Saves
from pipeline.train.survival import Memory
from tests.integration.training import (
    all_rows,
    assert_equal,
    assert_same_state,
    finish,
    newest_step,
    rows,
    stand_still,
    train,
    train_here,
    training,
    wait_for_step,
)
from tests.machine import wait_until
from tests.pipeline.worlds import SINGLE

ALL_KEPT = ("--checkpoint.keep", 99)
EVERY_STEP = ("--checkpoint.every_epochs", 0.125)
NO_EVALUATION = ("--evaluation.every_epochs", 0)
NUM_KILLS = 4

save_now, report = checkpoint.save, Saves.report


def states(run: Path) -> dict[int, dict[str, Any]]:
    """Of all checkpoints, by their steps."""
    found = {}
    for path in checkpoint.paths(RunDirectory(run).checkpoints):
        state = checkpoint.load(path)
        del state["settings"]  # which say whether the steps wait
        found[state["progress"]["step"]] = state
    return found


def has_row(run: Path, kind: str, step: int) -> Callable[[], bool]:
    """Whether the run has a row of that kind, of that step or a later one."""
    return lambda: any(row["kind"] == kind and row["step"] >= step for row in all_rows(run))


class SlowDisk:
    """Takes the checkpoint of each step in `until` only once what stands there is so."""

    def __init__(self, until: dict[int, Callable[[], bool]]) -> None:
        self.until = until
        self.threads: dict[int, str] = {}
        self.most_at_once = 0
        self._at_once = 0

    def save(self, directory: Path, step: int, state: dict[str, Any]) -> tuple[Path, int]:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        self.threads[step] = threading.current_thread().name
        if step in self.until:
            wait_until(self.until[step])
        saved = save_now(directory, step, state)
        self._at_once -= 1
        return saved


def use(monkeypatch: pytest.MonkeyPatch, disk: SlowDisk) -> None:
    monkeypatch.setattr(checkpoint, "save", disk.save)


def report_4_at_step_7(saves: Saves) -> None:
    if saves._future is not None and saves._components.progress.step == 7:
        futures.wait([saves._future])
    report(saves)


def test_they_hold_what_a_save_that_is_waited_for_holds(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though steps are done before the disk takes some of them."""
    waited, aside = tmp_path / "waited", tmp_path / "aside"
    assert train_here(shards, waited, *ALL_KEPT, "--checkpoint.background", "false") == 0
    disk = SlowDisk({4: has_row(aside, "train", 6), 12: has_row(aside, "train", 15)})
    use(monkeypatch, disk)
    monkeypatch.setattr(Saves, "report", report_4_at_step_7)
    assert train_here(shards, aside, *ALL_KEPT) == 0
    found, expected = states(aside), states(waited)
    assert set(found) == {4, 8, 12, 16, 20, 24}
    assert_equal(found, expected, "states")
    best = [(run / "checkpoints/best").resolve().name for run in (aside, waited)]
    assert best[0] == best[1]
    assert "waited_seconds" not in "".join(map(str, rows(waited, "checkpoint")))
    first = rows(aside, "checkpoint")[0]
    assert first["step"] == 4
    order = [(row["kind"], row["step"]) for row in all_rows(aside)]
    assert order.index(("checkpoint", 4)) > order.index(("train", 6))
    copies = {r["step"]: r["saving_seconds"] for r in rows(aside, "train") if "saving_seconds" in r}
    assert list(copies) == [5, 9, 13, 17, 21]
    assert first["waited_seconds"] == copies[5], "the steps waited for the copy alone"
    assert disk.threads.pop(24) == "MainThread"
    assert all(name.startswith("saving") for name in disk.threads.values())


def test_of_saves_that_are_due_close_together_none_is_lost(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one waits for the one in flight."""
    run, disk = tmp_path / "run", SlowDisk({})
    began = time.monotonic()
    disk.until = dict.fromkeys(range(1, 24), lambda: time.monotonic() > began + 0.01)
    use(monkeypatch, disk)
    assert train_here(shards, run, *EVERY_STEP, *ALL_KEPT) == 0
    assert [row["step"] for row in rows(run, "checkpoint")] == list(range(1, 25))
    assert len(states(run)) == 24
    assert disk.most_at_once == 1


def test_without_memory_for_a_copy_the_steps_wait(
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(snapshot, "host_free_bytes", lambda: 1_000_000)
    run = tmp_path / "run"
    assert train_here(shards, run, *ALL_KEPT) == 0
    sentence = "warning: the steps wait while checkpoints are written: a copy of the state takes"
    assert capsys.readouterr().out.count(sentence) == 1
    found = rows(run, "checkpoint")
    assert [row["step"] for row in found] == [4, 8, 12, 16, 20, 24]
    assert not any("waited_seconds" in row for row in found)


def test_a_stop_waits_for_the_save_in_flight_and_then_saves(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, signals = tmp_path / "run", mock.Mock(spec=StopSignals, noted=None)

    def is_stopping() -> bool:
        signals.noted = StopSource.SIGTERM
        return has_row(run, "signal", 4)()

    def report_5_once_asked(saves: Saves) -> None:
        if saves._components.progress.step == 5:
            wait_until(lambda: signals.noted is not None)
        report(saves)

    monkeypatch.setattr(stop, "_MAX_POLL_STEPS", 1)  # it is agreed on before the next save is due
    monkeypatch.setattr(Saves, "report", report_5_once_asked)
    use(monkeypatch, SlowDisk({4: is_stopping}))
    words = training(shards, run, *ALL_KEPT, *NO_EVALUATION, "--metrics.enabled", "false")
    assert train_as_rank(parse_command(words), SINGLE, signals, Memory()) == ExitCode.STOPPED
    told = [(row["kind"], row["step"]) for row in all_rows(run) if row["kind"] != "train"]
    last = newest_step(run)
    kinds = ["signal", "checkpoint", "checkpoint", "end"]
    assert told[-4:] == list(zip(kinds, (last, 4, last, last), strict=True))
    assert rows(run, "checkpoint")[-1]["reason"] == "preempt"
    assert set(states(run)) == {4, last}


@pytest.mark.parametrize(
    ("owner", "name"),
    [(loop, "evaluate"), (Journal, "copied_state")],
    ids=["later", "before all ranks know of the save"],
)
def test_a_run_that_fails_ends_the_save_in_flight(
    owner: object, name: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, has_failed = tmp_path / "run", threading.Event()

    def fail(*_: object, **__: object) -> None:
        has_failed.set()
        raise ValueError("it broke")

    use(monkeypatch, SlowDisk({4: has_failed.is_set}))
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(RankFailure, match="it broke"):
        train_here(shards, run)
    assert newest_step(run) == 4
    assert [row["kind"] for row in all_rows(run)][-2:] == ["checkpoint", "end"]


def test_a_best_checkpoint_that_is_saved_at_the_second_try_is_marked(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last save is tried twice."""
    run, tries = tmp_path / "run", iter((False, True))

    def save(directory: Path, step: int, state: dict[str, Any]) -> tuple[Path, int]:
        if step == 24 and not next(tries):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))
        return save_now(directory, step, state)

    monkeypatch.setattr(checkpoint, "save", save)
    monkeypatch.setattr(Progress, "evaluated", lambda *_, **__: True)
    assert train_here(shards, run) == 0
    assert next(tries, None) is None
    best = run / "checkpoints/best"
    assert best.resolve() == checkpoint.paths(RunDirectory(run).checkpoints)[0].resolve()
    assert checkpoint.step_of(best.resolve()) == 24


def test_an_error_that_no_disk_makes_ends_the_run(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does where the steps wait."""

    def break_down(*_: object) -> tuple[Path, int]:
        raise checkpoint.CheckpointError("state.pt holds no state")

    monkeypatch.setattr(checkpoint, "save", break_down)
    with pytest.raises(RankFailure, match=r"state\.pt holds no state"):
        train_here(shards, tmp_path / "run")
    assert newest_step(tmp_path / "run") == 0


def slow_down_saves() -> None:
    """In a rank: then a save is in flight nearly always."""

    def save(directory: Path, step: int, state: dict[str, Any]) -> tuple[Path, int]:
        time.sleep(0.05)
        return save_now(directory, step, state)

    mock.patch.object(checkpoint, "save", save).start()


def save_slowly_and_stand_still() -> None:
    """In a rank: no kill finds the run complete, however late it comes."""
    slow_down_saves()
    stand_still(1, 12)


@pytest.mark.slow
def test_kills_during_saves_leave_a_good_one_and_lose_no_bit(shards: Path, tmp_path: Path) -> None:
    """At random moments; the other rank then finds that it is gone."""
    whole, run, moments = tmp_path / "whole", tmp_path / "run", random.Random(0)
    options = (*EVERY_STEP, *NO_EVALUATION, "--epochs", 9)
    finish(2, shards, whole, *options)
    for attempt in range(1, NUM_KILLS + 1):
        step = newest_step(run) + 2
        with train(2, shards, run, *options, before=save_slowly_and_stand_still) as job:
            wait_for_step(run, step, attempt)
            wait_until(lambda: newest_step(run) > 0)  # a kill may come before a save has ended
            time.sleep(moments.uniform(0, 0.2))
            for process in job.processes:
                assert process.pid is not None
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            job.wait()
        directory = RunDirectory(run).checkpoints
        assert checkpoint.newest_good(directory) == checkpoint.paths(directory)[0]
        told = [row["step"] for row in all_rows(run) if row["kind"] == "checkpoint"]
        assert newest_step(run) >= max(told, default=0), "what the events say is there"
    finish(2, shards, run, *options)
    assert_same_state(run, whole)
    assert list(run.rglob(".tmp-*")) == []


@pytest.mark.slow
def test_a_signal_during_saves_is_a_stop_like_any_other(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with train(2, shards, run, *EVERY_STEP, "--epochs", 200, before=slow_down_saves) as job:
        wait_for_step(run, 3)
        victim = job.processes[0].pid
        assert victim is not None
        os.kill(victim, signal.SIGTERM)
        assert job.wait() == [ExitCode.STOPPED] * 2
    (end,) = rows(run, "end")
    assert (end["outcome"], end["step"]) == ("stopped", newest_step(run))
    assert list(run.rglob(".tmp-*")) == []
