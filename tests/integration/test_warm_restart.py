"""Lost ranks that are replaced while the others stay, and keep the weights in memory."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.timeouts import SHUTDOWN_VARIABLE
from pipeline.run.directory import RunDirectory
from pipeline.run.ending import ExitCode
from tests.integration.training import (
    TRAIN,
    Keeper,
    all_rows,
    assert_same_state,
    pid_of,
    ranks_of,
    rows,
    torchrun,
    training,
    wait_for_step,
)
from tests.machine import DEADLINE_SECONDS
from tests.pipeline.monitoring import wait_for
from tests.pipeline.rank_jobs import Job

HOST = socket.gethostname()
SLEEPY = "tests.integration.sleepy_train"
WARM = ("--distributed.warm_restarts", 5)
OPTIONS = ("--epochs", 25, "--metrics.publish_seconds", 0.5)


def command(shards: Path, run: Path, *options: object) -> list[str]:
    return training(shards, run, *OPTIONS, *options)


def starts(run: Path) -> list[dict[str, Any]]:
    return [row for row in all_rows(run) if row["kind"] == "run"]


def struck(rank: int, num_steps: int, number: signal.Signals, mark: Path) -> str:
    """A word for `sleepy_train`: after so many steps the rank stands still until it is hit."""
    return f"{rank}:struck:{num_steps + 1}:{number:d}:{mark}"  # the first pass is no step


def hit(run: Path, mark: Path, attempt: int = 1) -> None:
    """Let the rank that waits for the mark have its signal, and wait for the next attempt."""
    mark.touch()
    wait_for(lambda: len(starts(run)) > attempt, "ranks that go on")


def in_use(pid: int) -> tuple[int, int]:
    """How many threads and open files the process has."""
    threads, files = (list(Path(f"/proc/{pid}/{name}").iterdir()) for name in ("task", "fd"))
    return len(threads), len(files)


def finish(job: Job) -> Job:
    with job:
        assert set(job.wait()) == {0}, job.errors
    return job


@pytest.mark.parametrize(("size", "victims"), [(3, [1, 0]), (2, [0])])
def test_killed_ranks_are_replaced_and_the_others_go_on(
    size: int, victims: list[int], shards: Path, tmp_path: Path
) -> None:
    plain, run = tmp_path / "plain", tmp_path / "run"
    only_at_the_end = ("--evaluation.every_epochs", 0)  # a best checkpoint may be lost with rank 0
    finish(Job(size, TRAIN, command(shards, plain, *only_at_the_end)))
    marks = [tmp_path / f"mark-{rank}" for rank in victims]
    words = [
        struck(rank, 8 * at, signal.SIGKILL, marks[at - 1]) for at, rank in enumerate(victims, 1)
    ]
    # All stand still at step 40, or soon before, until the survivor has been looked at.
    words.append(struck(size - 1, 40, signal.SIGCONT, looked := tmp_path / "looked"))
    words += ["--", *command(shards, run, *only_at_the_end, *WARM)]
    with Job(size, SLEEPY, words) as job:
        wait_for_step(run, 8)
        first = {rank: pid_of(run, rank) for rank in range(size)}
        survivor = first[size - 1]
        num_threads, num_files = in_use(survivor)
        for attempt, mark in enumerate(marks, 1):
            hit(run, mark, attempt)
        killed = [first[rank] for rank in victims]
        wait_for(
            lambda: all(
                pid_of(run, rank) != pid for rank, pid in zip(victims, killed, strict=True)
            ),
            "the metrics of those in their place",
        )
        last = {rank: pid_of(run, rank) for rank in range(size)}
        wait_for_step(run, 24, len(victims) + 1)
        # A broken group has seven, and 14 connections, which end by and by.
        wait_for(lambda: in_use(survivor)[0] < num_threads + 5, "the end of its threads")
        wait_for(lambda: in_use(survivor)[1] < num_files + 10, "the end of its connections")
        looked.touch()
        assert set(job.wait()) == {0}, job.errors
    assert {rank for rank in first if first[rank] != last[rank]} == set(victims)
    assert_same_state(run, plain)
    _, *later = starts(run)
    assert len(later) == len(victims)
    told = all_rows(run)
    for victim, row in zip(victims, later, strict=True):
        before = told[: told.index(row)]
        done = max(past["step"] for past in before if past["kind"] == "train")
        assert row["resumed_from"] in (done, done + 1), "no step that was done is done again"
        assert row["kept_by"] not in (None, victim)
        assert f"rank {victim} was killed by SIGKILL" in job.errors[victim]
    steps = [row["step"] for row in rows(run, "train")]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("keeper", ["torchrun", "rank 0"])
def test_torchrun_notices_nothing(keeper: Keeper, shards: Path, tmp_path: Path) -> None:
    run, mark = tmp_path / "run", tmp_path / "mark"
    words = [struck(0, 5, signal.SIGKILL, mark), "--", *command(shards, run, *WARM)]
    with torchrun(2, SLEEPY, words, tmp_path / "logs", keeper=keeper) as child:
        hit(run, mark)
        output, _ = child.communicate(timeout=DEADLINE_SECONDS)
        assert child.returncode == 0, output
    assert starts(run)[1]["kept_by"] == 1
    assert rows(run, "end")[-1]["outcome"] == "completed"


def test_a_rank_that_raises_is_replaced(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fault = f"1:raising:6:a fault of this rank alone:{tmp_path}/raised"  # the first pass is no step
    job = finish(Job(2, SLEEPY, [fault, "--", *command(shards, run, *WARM)]))
    _, again = starts(run)
    assert (again["resumed_from"], again["kept_by"]) == (5, 0)
    failed = next(row for row in all_rows(run) if row["kind"] == "end")
    assert failed["error"] == f"rank 1 on {HOST}: a fault of this rank alone"
    replaced = "rank 1 has ended; another one takes its place (warm restart 1 of at most 5)"
    assert replaced in job.errors[1]
    assert rows(run, "end")[-1]["outcome"] == "completed"


def test_ranks_are_replaced_no_more_often_than_is_said(shards: Path, tmp_path: Path) -> None:
    """The rank fails in its fourth step, and so does each one in its place."""
    run = tmp_path / "run"
    words = command(shards, run, "--distributed.warm_restarts", 2)
    with Job(2, SLEEPY, ["1:raising:4:again", "--", *words]) as job:
        assert job.wait()[1] == 1
    assert [row["resumed_from"] for row in starts(run)] == [None, 3, 6]
    assert rows(run, "end")[-1]["error"].endswith("again")


def test_a_rank_that_fails_before_the_first_step_is_not_replaced(
    shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with Job(2, SLEEPY, ["1:raising:1:at once", "--", *command(shards, run, *WARM)]) as job:
        assert job.wait()[1] == 1
    assert len(starts(run)) == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_hangs_is_named_and_replaced(rank: int, shards: Path, tmp_path: Path) -> None:
    run, mark = tmp_path / "run", tmp_path / "mark"
    mark.touch()  # it is to wait for nothing, or that would be the hang
    words = [struck(rank, 5, signal.SIGSTOP, mark), f"{rank}:blamed:0:0", "--"]
    words += command(shards, run, *WARM, "--distributed.timeout_seconds", 4)
    with Job(2, SLEEPY, words) as job:
        assert set(job.wait()) == {0}, job.errors
    _, again = starts(run)
    assert again["kept_by"] == 1 - rank
    replaced = ["another one takes its place" in errors for errors in job.errors]
    assert replaced == [rank == 0, rank == 1], "the other keeps its process"
    assert re.search(rf"rank {rank} (on {HOST} )?gives no sign of life", "".join(job.errors))
    assert (RunDirectory(run).hangs / f"rank-{1 - rank:05d}.txt").exists()
    assert rows(run, "end")[-1]["outcome"] == "completed"


def test_a_signal_to_one_rank_alone_does_not_stop_the_job(shards: Path, tmp_path: Path) -> None:
    """All save and leave, as for any stop; but nobody has asked the job to, so others go on."""
    run, mark = tmp_path / "run", tmp_path / "mark"
    words = [struck(1, 5, signal.SIGTERM, mark), "--", *command(shards, run, *WARM)]
    with Job(2, SLEEPY, words) as job:
        hit(run, mark)
        assert set(job.wait()) == {0}, job.errors
    asked, again = next(row for row in all_rows(run) if row["kind"] == "signal"), starts(run)[1]
    assert again["resumed_from"] == asked["step"]
    assert "kept_by" not in again
    assert rows(run, "end")[-1]["outcome"] == "completed"


@pytest.mark.parametrize("by", ["signal", "file"])
def test_a_job_that_is_asked_to_stop_stops(by: str, shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with Job(2, TRAIN, command(shards, run, *WARM, "--epochs", 1000)) as job:
        wait_for_step(run, 5)
        if by == "signal":
            assert job.processes[1].pid is not None
            os.kill(job.processes[1].pid, signal.SIGTERM)  # its supervisor
        else:
            RunDirectory(run).stop_request.touch()
        assert job.wait() == [ExitCode.STOPPED] * 2
    assert len(starts(run)) == 1
    assert rows(run, "end")[-1]["outcome"] == "stopped"


def test_a_killed_supervisor_is_not_waited_for(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot say that its rank does not come; but torchrun asks the others to leave."""
    monkeypatch.setenv(SHUTDOWN_VARIABLE, f"{2 * DEADLINE_SECONDS:.0f}")  # then it kills them
    run, words = tmp_path / "run", command(shards, tmp_path / "run", *WARM, "--epochs", 1000)
    with torchrun(2, TRAIN, words, tmp_path / "logs", keeper="rank 0") as child:
        wait_for_step(run, 5)
        os.kill(ranks_of(child)[1], signal.SIGKILL)
        output, _ = child.communicate(timeout=DEADLINE_SECONDS)
    assert child.returncode == 1, output
