"""Ranks that stand still: the job ends, says which and where, and torchrun starts it again."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path

import pytest

from pipeline.explain.explain import explain
from pipeline.run.directory import RunDirectory
from tests.integration.training import (
    STEPS_PER_EPOCH,
    Keeper,
    all_rows,
    assert_same_state,
    rank_log,
    ranks_of,
    torchrun,
    training,
    wait_for_step,
)
from tests.machine import DEADLINE_SECONDS
from tests.pipeline.monitoring import wait_for

HOST = socket.gethostname()
SLEEPY = "tests.integration.sleepy_train"
QUIET = ("--metrics.enabled", "false")
OPTIONS = ("--distributed.timeout_seconds", 3, *QUIET)


def blamed(rank: int) -> str:
    """A word for `sleepy_train`: what else stands still for three seconds does not count."""
    return f"{rank}:blamed:0:0"


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    arguments = training(shards, folder / "run", *QUIET)
    with torchrun(2, "pipeline.train", arguments, folder / "logs") as child:
        assert child.wait(DEADLINE_SECONDS) == 0
    return folder / "run"


@pytest.mark.parametrize(
    ("rank", "where", "phase", "keeper"),
    [
        (0, "reading", "reading a batch", "rank 0"),
        (1, "computing", "computing gradients", "torchrun"),
    ],
)
def test_a_rank_that_sleeps_is_named_and_the_job_goes_on(
    rank: int,
    where: str,
    phase: str,
    keeper: Keeper,
    shards: Path,
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    run, logs = tmp_path / "run", tmp_path / "logs"
    sleep = f"{rank}:{where}:5:10000:{tmp_path}/slept"
    arguments = [sleep, blamed(rank), "--", *training(shards, run, *OPTIONS)]
    with torchrun(2, SLEEPY, arguments, logs, max_restarts=1, keeper=keeper) as child:
        output, _ = child.communicate(timeout=DEADLINE_SECONDS)
        assert child.returncode == 0, output
    hang, end = (row for row in all_rows(run) if row["kind"] == "end")
    sentence = f"rank {rank} on {HOST} hangs, {phase} after step "
    assert hang["error"].startswith(sentence)
    *_, last_line = rank_log(logs, 0, "stderr").splitlines()
    assert last_line == f"error: {hang['error']}"
    for other in (0, 1):
        text = (RunDirectory(run).hangs / f"rank-{other:05d}.txt").read_text()
        assert text.startswith(sentence)
        assert "most recent call first" in text
        assert (" in sleepy\n" in text) == (other == rank)
    assert end["outcome"] == "completed"
    assert explain(RunDirectory(run)).sentence.startswith("Completed at "), "what hung is past"
    assert_same_state(run, undisturbed)


@pytest.mark.parametrize(
    ("blind", "keeper"), [("0:blind:0:10000", "torchrun"), ("1:blind:0:3", "rank 0")]
)
def test_the_verdict_is_reported_by_a_rank_that_is_late_to_find_it(
    blind: str, keeper: Keeper, shards: Path, tmp_path: Path
) -> None:
    """By then rank 1 has left, and so the averaging that rank 0 waits in breaks.

    Or rank 0 would have left, and with it the store that the verdict is in.
    """
    run, logs = tmp_path / "run", tmp_path / "logs"
    sleeps = ["1:computing:3:10000", blind]
    arguments = [*sleeps, blamed(1), "--", *training(shards, run, *OPTIONS)]
    with torchrun(2, SLEEPY, arguments, logs, keeper=keeper) as child:
        child.communicate(timeout=DEADLINE_SECONDS)
    (end,) = (row for row in all_rows(run) if row["kind"] == "end")
    sentence = f"rank 1 on {HOST} hangs, computing gradients after step "
    assert end["error"].startswith(sentence)
    assert rank_log(logs, 0, "stderr").splitlines()[-1] == f"error: {end['error']}"
    assert "error: " not in rank_log(logs, 1, "stderr")
    for rank in (0, 1):
        text = (RunDirectory(run).hangs / f"rank-{rank:05d}.txt").read_text()
        assert text.startswith(end["error"])


@pytest.mark.parametrize(
    ("rank", "keeper"), [(0, "torchrun"), (1, "torchrun"), (0, "rank 0"), (1, "rank 0")]
)
def test_a_rank_that_is_stopped_is_named(
    rank: int, keeper: Keeper, shards: Path, tmp_path: Path
) -> None:
    """Though it may be the one that keeps the store that the others have their heartbeats in.

    Rank 0 notices of others between saves too; while it saves itself, it may take its time.
    """
    run, logs = tmp_path / "run", tmp_path / "logs"
    every_epochs = 1 / STEPS_PER_EPOCH if rank else 0
    options = ("--evaluation.every_epochs", 0, "--checkpoint.every_epochs", every_epochs)
    arguments = training(shards, run, *OPTIONS, "--epochs", 20_000, *options)
    words = [blamed(rank), "--", *arguments]
    with torchrun(2, SLEEPY, words, logs, keeper=keeper) as child:
        wait_for_step(run, 20)  # with heartbeats of all ranks long in the store
        victim = ranks_of(child)[rank]
        os.kill(victim, signal.SIGSTOP)
        other = 1 - rank
        wait_for(lambda: "error: " in rank_log(logs, other, "stderr"), "the verdict")
        os.kill(victim, signal.SIGKILL)
        child.communicate(timeout=DEADLINE_SECONDS)
    *_, last_line = rank_log(logs, other, "stderr").splitlines()
    assert re.match(rf"error: rank {rank} (on {HOST} )?gives no sign of life", last_line), last_line
    told = explain(RunDirectory(run))
    assert told.cause is not None
    assert (told.cause.kind, told.cause.rank) == ("hang", rank)
