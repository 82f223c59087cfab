"""What goes wrong in the numbers of one rank is found at the next log, and the rank is named."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from pipeline.explain.explain import explain
from pipeline.metrics.rank_file import rank_file_name
from pipeline.optim.replica import Replica
from pipeline.run.directory import RunDirectory
from tests.integration.training import finish, newest_step, rows, training
from tests.pipeline.rank_jobs import Job, replaced

HOST = socket.gethostname()
SAVE_EVERY = 4
"""Steps."""
OPTIONS = ("--log_every_steps", 6, "--evaluation.every_epochs", 0, "--max-steps", 9)


def flipped(size: int, shards: Path, run: Path, word: str, *options: object) -> Job:
    words = training(shards, run, *OPTIONS, *options)
    return Job(size, "tests.integration.sleepy_train", [word, "--", *words])


def ranks_that_differ(run: Path, size: int) -> list[int]:
    return ranks_with_one(run, size, "alexnet_replica_differs")


def ranks_with_one(run: Path, size: int, name: str) -> list[int]:
    """The ranks of which the metric is 1."""
    texts = [(RunDirectory(run).metrics / rank_file_name(rank)).read_text() for rank in range(size)]
    labels = '{{local_rank="{0}",rank="{0}"}} 1.0'
    return [rank for rank, text in enumerate(texts) if name + labels.format(rank) in text]


def spoil_images() -> None:
    """Let those of rank 1 be NaN in its fourth step."""
    plain, num_steps = Replica.add_gradients, 0

    def add_gradients(replica: Replica, inputs: torch.Tensor, *rest: Any, **options: Any) -> Any:
        nonlocal num_steps
        num_steps += 1
        is_fourth = num_steps == 1 + 4  # behind the warm-up
        spoiled = inputs * torch.nan if is_fourth else inputs
        return plain(replica, spoiled, *rest, **options)

    if os.environ["RANK"] == "1":
        mock.patch.object(Replica, "add_gradients", add_gradients).start()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tensor", "num_updates"),
    [
        ("features.4.weight", 4),
        ("features.7.running_var", 5),  # in the step of the log: each step averages moments
    ],
)
def test_of_three_ranks_the_one_is_named(
    tensor: str, num_updates: int, shards: Path, tmp_path: Path
) -> None:
    with flipped(3, shards, tmp_path, f"1:flipping:{num_updates}:{tensor}") as job:
        assert job.wait() == [1, 1, 1]
    (alarm,) = rows(tmp_path, "alarm")
    names = ("reason", "step", "rank", "host", "tensor", "what")
    what = f"rank 1 on {HOST} differs from the others"
    expected = ["replicas_differ", 6, 1, HOST, tensor, what]
    assert [alarm[name] for name in names] == expected
    (end,) = rows(tmp_path, "end")
    assert end["outcome"] == "failed"
    assert f"the replicas differ at step 6, first in {tensor}: {what}. Nothing is" in end["error"]
    assert job.errors[0].splitlines()[-1] == f"error: {end['error']}"
    assert "Traceback" not in "".join(job.errors)
    assert ranks_that_differ(tmp_path, 3) == [1]
    assert newest_step(tmp_path) == SAVE_EVERY, "before the bit flipped"
    told = explain(RunDirectory(tmp_path))
    assert told.cause is not None
    assert (told.cause.kind, told.cause.rank, told.lost_steps) == ("replicas_differ", 1, 2)
    assert f"first in {tensor}: {what}" in told.sentence


@pytest.mark.slow
def test_of_two_ranks_both_are_named_and_the_same_command_goes_on(
    shards: Path, tmp_path: Path
) -> None:
    with flipped(2, shards, tmp_path, "0:flipping:6:classifier.6.bias") as job:
        assert job.wait() == [1, 1]
    (alarm,) = rows(tmp_path, "alarm")
    assert (alarm["step"], alarm["rank"], alarm["host"]) == (8, None, None), "before the save"
    what = f"rank 0 on {HOST} and rank 1 on {HOST} differ, and it is undecided which is right"
    assert alarm["what"] == what
    cause = explain(RunDirectory(tmp_path)).cause
    assert cause is not None
    assert (cause.kind, cause.rank) == ("replicas_differ", None)
    assert ranks_that_differ(tmp_path, 2) == [0, 1]
    assert newest_step(tmp_path) == SAVE_EVERY
    finish(2, shards, tmp_path, *OPTIONS)
    assert [row["step"] for row in rows(tmp_path, "checkpoint")] == [4, 8, 9]
    assert ranks_that_differ(tmp_path, 2) == []


@pytest.mark.slow
def test_what_is_not_compared_is_not_found(shards: Path, tmp_path: Path) -> None:
    off = ("--distributed.compare_replicas", "false")
    with flipped(2, shards, tmp_path, "0:flipping:4:classifier.6.bias", *off) as job:
        assert job.wait() == [0, 0], job.errors
    assert rows(tmp_path, "alarm") == []


@pytest.mark.slow
def test_the_rank_whose_loss_is_not_finite_is_named(shards: Path, tmp_path: Path) -> None:
    never = ("--evaluation.every_epochs", 0, "--checkpoint.every_epochs", 0)
    words = replaced(training(shards, tmp_path, *never, "--max-steps", 9))
    with Job(2, "pipeline.train", words, before=spoil_images) as job:
        assert job.wait() == [1, 1]
    (end,) = rows(tmp_path, "end")
    sentence = "the loss is nan at step 4, by images of rank 1 alone: training has diverged"
    assert sentence in end["error"]
    assert ranks_with_one(tmp_path, 2, "alexnet_loss_not_finite_total") == [1]
    cause = explain(RunDirectory(tmp_path)).cause
    assert cause is not None
    assert (cause.kind, cause.rank) == ("diverged", 1)
