"""Training the network of 2012 with a column on each of two ranks, against one rank with both.

Once with all of its kernels. How a run stops, goes on and changes its layout does not depend on
their number: there the network is narrow.
"""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from pipeline.model import alexnet
from tests.integration.training import (
    all_rows,
    assert_same_state,
    losses,
    make_large_shards,
    newest_state,
    newest_step,
    rows,
    wait_for_step,
)
from tests.pipeline.rank_jobs import Job, replaced

NUM_TRAIN, NUM_VAL = 24, 7


@pytest.fixture(scope="module")
def shards(scratch: Path) -> Path:
    return make_large_shards(scratch / "shards", NUM_TRAIN, NUM_VAL)


def narrow() -> None:
    """Leave a few kernels and units of each layer."""
    alexnet._KERNELS, alexnet._UNITS = (8, 12, 16, 16, 12), 128


def train(
    num_ranks: int,
    shards: Path,
    run: Path,
    *options: object,
    is_whole: bool = False,
    fault: str | None = None,
) -> Job:
    """`fault` is for `sleepy_train`."""
    words: list[object] = ["alexnet_2012", "--data.shards", shards, "--run-dir", run]
    words += ["--metrics.enabled", "false", "--global_batch_size", 8, "--epochs", 1]
    words += ["--log_every_steps", 1, "--optim.learning_rate", 1e-4, "--evaluation.block_size", 4]
    words += ["--evaluation.every_epochs", 0, "--checkpoint.every_epochs", 0, *options]
    before = None if is_whole else narrow
    if fault is not None:
        words = [fault, "--", *replaced(words)]
        return Job(num_ranks, "tests.integration.sleepy_train", words, before=before)
    return Job(num_ranks, "pipeline.train", words, before=before)


def finish(job: Job, code: int = 0) -> Job:
    with job:
        assert job.wait() == [code] * len(job.processes), job.errors
    return job


def test_a_rank_knows_that_the_one_of_the_other_column_is_gone(
    shards: Path, tmp_path: Path
) -> None:
    """Wherever in a step it waits for it."""
    run = tmp_path / "run"
    with train(2, shards, run, "--model.columns", "split", "--epochs", 1000) as job:
        wait_for_step(run, 2)
        job.processes[1].kill()
        assert job.wait() == [1, -signal.SIGKILL]
    *_, last = job.errors[0].splitlines()
    assert "lost another rank" in last
    assert "Traceback" not in job.errors[0]
    assert rows(run, "end")[-1]["cause"] == "lost_rank"


@pytest.mark.slow
def test_weights_are_compared_with_those_of_the_same_column(shards: Path, tmp_path: Path) -> None:
    """Those of the other column are others; of two that differ, nobody knows which is right."""
    options = ("--model.columns", "split", "--log_every_steps", 2)
    with train(4, shards, tmp_path, *options, fault="3:flipping:0:conv4.weight") as job:
        assert job.wait() == [1] * 4
    (alarm,) = rows(tmp_path, "alarm")
    found = [alarm[name] for name in ("reason", "step", "rank", "host", "tensor")]
    assert found == ["replicas_differ", 2, None, None, "conv4.weight"]
    host = socket.gethostname()
    who = f"rank 1 on {host} and rank 3 on {host} differ, and it is undecided which is right"
    assert alarm["what"] == who
    assert who in job.errors[0]
    assert newest_step(tmp_path) == 0


def evaluation(run: Path) -> tuple[int, ...]:
    (row,) = rows(run, "eval")
    return tuple(row[name] for name in ("correct1", "correct5", "seen", "expected"))


def assert_close(found: dict[str, Any], exact: dict[str, Any], tolerance: float) -> None:
    assert set(found["model"]) == set(exact["model"])
    for name, whole in exact["model"].items():
        error = (found["model"][name] - whole).abs().max() / whole.abs().max().clamp_min(1e-3)
        assert error < tolerance, f"{name}: {error}"
    momenta = exact["optimizer"]["tensors"]
    assert set(found["optimizer"]["tensors"]) == set(momenta)
    for name, tensors in momenta.items():
        part = found["optimizer"]["tensors"][name]["momentum_buffer"]
        whole = tensors["momentum_buffer"]
        assert float((part - whole).norm() / whole.norm()) < 100 * tolerance, name


def train_fused(scratch: Path, shards: Path, *, is_whole: bool) -> Path:
    """Three steps on one rank."""
    run = scratch / f"fused-{is_whole}"
    if not run.exists():
        finish(train(1, shards, run, is_whole=is_whole))
    return run


@pytest.mark.parametrize(
    ("num_ranks", "accumulation", "is_whole"), [(2, 2, True), (2, 2, False), (4, 1, False)]
)
def test_a_column_on_each_rank_trains_the_same_network(
    scratch: Path, shards: Path, num_ranks: int, accumulation: int, is_whole: bool
) -> None:
    """Of two replicas also from memory, where both ranks of a replica hold what it evaluates."""
    run = scratch / f"split-{num_ranks}-{is_whole}"
    fused = train_fused(scratch, shards, is_whole=is_whole)
    split: tuple[object, ...] = ("--model.columns", "split", "--accumulation_steps", accumulation)
    if num_ranks > 2:
        split += ("--data.reader", "resident")
    job = finish(train(num_ranks, shards, run, *split, is_whole=is_whole))
    assert f"{num_ranks} on cpu, fp32, one column each" in job.outputs[0]
    assert losses(run) == pytest.approx(losses(fused), rel=1e-5)
    waits = {row["phase_seconds"]["sync_wait"] > 0 for row in rows(run, "train")}
    assert waits == {num_ranks > 2}, "a replica alone averages with nobody"
    assert evaluation(run) == evaluation(fused)
    assert evaluation(run)[2:] == (NUM_VAL, NUM_VAL)
    assert_close(newest_state(run), newest_state(fused), 1e-4)


def test_a_split_run_that_is_stopped_has_the_bits_of_one_that_is_not(
    scratch: Path, shards: Path
) -> None:
    split = ("--model.columns", "split", "--optim.learning_rate", 1e-3, "--precision", "bf16")
    stopped, straight = scratch / "stopped", scratch / "straight"
    finish(train(2, shards, stopped, *split, "--max-steps", 2))
    job = finish(train(2, shards, stopped, *split))
    assert "resumed from" in job.outputs[0]
    finish(train(2, shards, straight, *split, "--data.reader", "resident"))
    assert losses(stopped) == losses(straight)
    assert evaluation(stopped) == evaluation(straight)
    assert_same_state(stopped, straight)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_a_lost_rank_of_a_split_replica_is_replaced(
    shards: Path, tmp_path: Path, num_ranks: int
) -> None:
    """With another replica from memory, alone from the checkpoint: half the network is lost.

    Then the step that the other half has in memory is a later one.
    """
    run, plain = tmp_path / "run", tmp_path / "plain"
    split: list[object] = ["--model.columns", "split", "--epochs", 2]
    finish(train(num_ranks, shards, plain, *split))
    split += ["--distributed.warm_restarts", 1, "--checkpoint.every_epochs", 2 / 3]
    fault = f"1:raising:4:gone:{tmp_path}/mark"  # the first pass is no step
    job = finish(train(num_ranks, shards, run, *split, fault=fault))
    assert "rank 1 has ended; another one takes its place" in job.errors[1]
    begun = [row for row in all_rows(run) if row["kind"] == "run"]
    kept = {2: (2, None), 4: (3, 0)}[num_ranks]
    found = [(row["resumed_from"], row.get("kept_by")) for row in begun]
    assert found == [(None, None), kept]
    assert losses(run) == losses(plain)
    assert_same_state(run, plain)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_goes_on_in_the_other_layout(scratch: Path, shards: Path, optimizer: str) -> None:
    """Split, fused, split, each for a step: what is computed is that of fused all the way."""
    options: tuple[object, ...] = ("--optim.name", optimizer)
    if optimizer == "sgd":
        options += ("--optim.momentum_form", "velocity")
    split, run = ("--model.columns", "split"), scratch / f"changing-{optimizer}"
    straight = scratch / f"straight-{optimizer}"
    finish(train(2, shards, run, *options, *split, "--max-steps", 1))
    finish(train(1, shards, run, *options, "--max-steps", 2))
    finish(train(2, shards, run, *options, *split))
    finish(train(1, shards, straight, *options))
    assert losses(run) == pytest.approx(losses(straight), rel=1e-5)
    found, exact = newest_state(run), newest_state(straight)
    for name, tensors in exact["optimizer"]["tensors"].items():
        for kind, whole in tensors.items():
            part = found["optimizer"]["tensors"][name][kind]
            assert float((part - whole).norm()) <= 1e-2 * float(whole.norm()), (name, kind)
    results = [evaluate(num_ranks, run) for num_ranks in (1, 3)]
    assert results[0] == results[1]
    assert results[0]["seen"] == NUM_VAL


def evaluate(num_ranks: int, run: Path) -> dict[str, Any]:
    words = ["--run-dir", run, "--views", 10, "--json"]
    job = finish(Job(num_ranks, "pipeline.evaluate", words, before=narrow))
    row = json.loads(job.outputs[0].splitlines()[-1])
    return {name: row[name] for name in ("correct1", "correct5", "seen", "loss")}


def test_what_cannot_be_is_reported_in_a_sentence(scratch: Path, shards: Path) -> None:
    fused = train_fused(scratch, shards, is_whole=False)

    def sentence(num_ranks: int, run: Path, *options: object) -> str:
        with train(num_ranks, shards, run, *options) as job:
            assert 0 not in job.wait()
        (line,) = [line for line in job.errors[0].splitlines() if line.startswith("error: ")]
        assert "Traceback" not in job.errors[0]
        return line

    new = scratch / "new"
    split = ("--model.columns", "split")
    assert "needs two ranks for each replica, and there are 3" in sentence(3, new, *split)
    assert "and there is 1: give torchrun an even" in sentence(1, new, *split)
    assert "crop_pixels is 256, and the images are 230×230" in sentence(
        2, new, *split, "--augment.crop_pixels", 256
    )
    assert "alexnet_2012 takes images of 224×224, and gets 200×200" in sentence(
        2, new, *split, "--augment.crop_pixels", 200
    )
    assert "training has diverged; lower optim.learning_rate" in sentence(
        2, new, *split, "--optim.learning_rate", 1e30
    )
    assert "belongs to a run with another configuration (model.name: was alexnet_2012, is" in (
        sentence(1, fused, "--model.name", "alexnet_2014")
    )
    assert not (new / "checkpoints").exists() or not any((new / "checkpoints").iterdir())
