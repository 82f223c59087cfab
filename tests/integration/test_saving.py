"""Checkpoints and events on bad disks, after kills, and in runs that go badly."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from pipeline.explain.explain import explain
from pipeline.run import checkpoint
from pipeline.run.directory import RunDirectory
from pipeline.train import log_interval, loop
from pipeline.train.evaluation import Evaluation, evaluate
from tests.integration.training import (
    GLOBAL_BATCH,
    NUM_VAL,
    STEPS_PER_EPOCH,
    fail,
    finish,
    newest_state,
    newest_step,
    rows,
    train,
    train_here,
)
from tests.machine import small_disk


def test_a_disk_that_takes_no_events_and_no_metrics_costs_no_step(
    shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "events.jsonl").symlink_to("/dev/full")
    (run / "metrics").touch()
    job = finish(2, shards, run, "--epochs", 1)
    assert newest_step(run) == STEPS_PER_EPOCH
    assert "cannot write events: No space left on device; training goes on" in job.errors[0]
    assert "cannot write metrics" in job.errors[1]


def test_a_disk_that_takes_no_checkpoint(shards: Path, tmp_path: Path) -> None:
    """Costs the checkpoints in between only; without the last one the run has failed."""
    run = tmp_path / "run"
    with (
        small_disk(run / "checkpoints", "2m"),
        train(2, shards, run, "--epochs", 2) as job,
    ):
        codes = job.wait()
    assert codes == [1, 1]
    assert job.outputs[0].count("warning: no checkpoint saved: No space left") == 4
    assert "the checkpoint of step 16 could not be saved: No space" in job.errors[0]
    assert "rank" not in job.errors[0]  # all know of it, and none is to blame
    assert "error: " not in job.errors[1]  # torch may say there that rank 0 left first
    assert " MB free; once that is mended, run the same command again" in job.errors[0]
    assert rows(run, "end")[0]["outcome"] == "failed"
    published = (run / "metrics/rank-00000.prom").read_text()
    assert 'alexnet_checkpoint_failures_total{kind="periodic"} 5.0' in published
    told = explain(RunDirectory(run))
    assert told.cause is not None
    assert (told.state, told.cause.kind, told.cause.rank) == ("failed", "disk_full", 0)
    assert (told.lost_steps, told.next[:16]) == (16, "free space there")
    finish(2, shards, run, "--epochs", 2)


def test_a_best_mark_that_a_kill_forestalled_is_made_up_for(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finish(2, shards, run, "--max-steps", STEPS_PER_EPOCH)
    best = run / "checkpoints/best"
    best.unlink()
    finish(2, shards, run, "--max-steps", STEPS_PER_EPOCH + 1)
    assert best.resolve().name == f"step-{STEPS_PER_EPOCH:08d}"


def test_a_damaged_checkpoint_leaves_the_series(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finish(1, shards, run, "--max-steps", 8)
    (run / "checkpoints/step-00000008/state.pt").write_bytes(b"")
    job = finish(1, shards, run, "--max-steps", 6)
    assert f" {run}/checkpoints/step-00000006\n" in job.outputs[0]
    kept = {path.name for path in (run / "checkpoints").glob("*step-*")}
    assert kept == {"step-00000004", "step-00000006", "damaged-step-00000008"}
    finish(1, shards, run, "--max-steps", 8)
    assert (run / "checkpoints/best").resolve().name == "step-00000008"


def test_the_best_is_the_best_of_those_that_were_saved(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first evaluation is the best one, and the disk is full just then."""
    run, hits = tmp_path / "run", iter((40, 20, 10))
    save = checkpoint.save

    def save_from_16_on(directory: Path, step: int, state: dict[str, Any]) -> tuple[Path, int]:
        if step < 16:
            raise OSError(28, "No space left on device")
        return save(directory, step, state)

    def evaluate_worse_and_worse(*arguments: Any, **options: Any) -> Evaluation:
        found = evaluate(*arguments, **options)
        event = dataclasses.replace(found.event, top1=next(hits) / NUM_VAL)
        return dataclasses.replace(found, event=event)

    monkeypatch.setattr(checkpoint, "save", save_from_16_on)
    monkeypatch.setattr(loop, "evaluate", evaluate_worse_and_worse)
    assert train_here(shards, run) == 0
    assert (run / "checkpoints/best").resolve().name == "step-00000016"
    progress = newest_state(run)["progress"]
    assert (progress["marked"], progress["best_top1"]) == ((16, 20 / NUM_VAL), 40 / NUM_VAL)


def test_a_checkpoint_is_saved_though_old_ones_cannot_be_deleted(
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(_directory: Path, _keep: int) -> None:
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(checkpoint, "prune", refuse)
    run = tmp_path / "run"
    assert train_here(shards, run, "--max-steps", 8) == 0
    assert [row["step"] for row in rows(run, "checkpoint")] == [4, 8]
    output = capsys.readouterr().out
    assert output.count("old ones are not deleted: Permission denied") == 2
    assert "no checkpoint saved" not in output


def test_what_a_killed_job_left_is_cleared_away(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "predictions").mkdir(parents=True)
    (run / "predictions/.tmp-val.npz-abc").touch()
    (run / "checkpoints/.tmp-step-00000003").mkdir(parents=True)
    (run / "checkpoints/.tmp-removed-step-00000001").mkdir()
    (run / "STOP").touch()
    finish(1, shards, run, "--max-steps", 2)
    assert list(run.rglob(".tmp-*")) == []
    assert not (run / "STOP").exists()


def test_training_that_diverges_ends_with_a_sentence(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--optim.learning_rate", 1e30, "--precision", "fp32", "--schedule.warmup_ratio", 0]
    sentence = fail(train(2, shards, run, *options))
    assert "diverged" in sentence
    assert "lower optim.learning_rate" in sentence
    assert newest_step(run) == 0
    told = explain(RunDirectory(run))
    assert told.cause is not None
    assert (told.state, told.cause.kind) == ("failed", "diverged")
    assert told.cause.rank is None, "all ranks had the same weights"
    finish(2, shards, run, "--max-steps", 2)


def test_options_that_say_how_may_change(shards: Path, tmp_path: Path) -> None:
    run: Any = tmp_path / "run"
    finish(1, shards, run, "--max-steps", 3)
    options = ["--data.decode_threads", 2, "--checkpoint.keep", 1, "--data.prefetch_batches", 1]
    finish(1, shards, run, "--max-steps", 6, *options)
    assert [path.name for path in (run / "checkpoints").glob("step-*")] == ["step-00000006"]


def test_a_network_that_does_not_learn_rings_an_alarm(shards: Path, tmp_path: Path) -> None:
    """From the first log line on by which enough images were seen, and not before."""
    run, enough = tmp_path / "run", ("--not_learning_after_samples", 3 * GLOBAL_BATCH)
    with mock.patch.object(log_interval, "is_guessing", return_value=True):
        assert train_here(shards, run, *enough, "--max-steps", 5) == 0
    (alarm,) = rows(run, "alarm")
    assert alarm["step"] == 3
    assert alarm["loss"] == rows(run, "train")[2]["loss"]
