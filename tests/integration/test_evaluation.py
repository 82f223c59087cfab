"""Runs are evaluated exactly, by any number of ranks, while they go on too."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import socket
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from data_prep.shard_set.manifest import manifest_sha256, read_manifest
from launch.outcome import outcome_of
from launch.runs import describe
from pipeline.evaluate import __main__ as evaluate_module
from pipeline.explain.explain import explain
from pipeline.metrics.outcomes import read_run_status
from pipeline.ranks.world import World
from pipeline.run import checkpoint
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import own_evaluations, read_events
from pipeline.run.settings import read_settings
from tests.integration.training import (
    NUM_TRAIN,
    NUM_VAL,
    all_rows,
    fail,
    finish,
    rewrite_manifest,
    rows,
    train_here,
)
from tests.pipeline.rank_jobs import Job, call_on_ranks
from tests.pipeline.worlds import SINGLE

EVALUATE = "pipeline.evaluate"


def evaluate_run(size: int, run: Path, *options: object) -> Job:
    return Job(size, EVALUATE, ["--run-dir", run, *options])


def test_an_evaluation_is_the_same_on_any_number_of_ranks(trained: Path) -> None:
    during = rows(trained, "eval")[-1]
    predictions = dict(np.load(RunDirectory(trained).predictions("val")))
    for size in (1, 2, 3, 4):
        with evaluate_run(size, trained, "--json") as job:
            assert job.wait() == [0] * size, job.errors
        answer = json.loads(job.outputs[0])
        assert "".join(job.outputs[1:] + job.errors) == ""
        for name in ("step", "correct1", "correct5", "seen", "expected", "loss", "top1", "top5"):
            assert answer[name] == during[name], name
        with np.load(RunDirectory(trained).predictions("val")) as saved:
            assert set(saved) == set(predictions) > {"step", "labels", "views", "manifest_sha256"}
            assert all(np.array_equal(saved[name], predictions[name]) for name in predictions)
        row = rows(trained, "eval")[-1]
        assert (row["by"], row["step"]) == ("evaluate", during["step"])
        assert {**row, "by": "train", "seconds": 0, "time": 0} == {
            **during,
            "seconds": 0,
            "time": 0,
        }


def test_an_evaluation_is_recorded_and_reported_in_prose(trained: Path, tmp_path: Path) -> None:
    """It is then what status tells; the run has ended as it had, and at the step it had."""
    run = shutil.copytree(trained, tmp_path / "run", symlinks=True)
    with (run / "events.jsonl").open("ab") as file:
        file.write(b'{"kind": "train", "step": 1')  # a trainer that was killed while it wrote
    with evaluate_run(2, run, "--checkpoint", "12") as job:
        assert job.wait() == [0, 0], job.errors
    text = job.outputs[0]
    assert f"{run}/checkpoints/step-00000012, step 12\n" in text
    assert "val of generated shapes, 53 images, one view of each\n" in text
    row = all_rows(run)[-1]
    assert (row["kind"], row["by"], row["step"], row["views"]) == ("eval", "evaluate", 12, 1)
    assert f"{row['top1']:.2%} ({row['correct1']} of 53)" in text
    assert f"{row['top5']:.2%} ({row['correct5']} of 53)" in text
    run_status = read_run_status(RunDirectory(run), socket.gethostname(), time.time())
    events = read_events(run / "events.jsonl")
    told = explain(RunDirectory(run))
    described = describe(RunDirectory(run), events, run_status, told)
    assert described["evaluation"].endswith(", after step 12")
    assert described["step"].startswith("16 of 16")
    assert described["state"] == "completed"
    assert outcome_of(read_events(run / "events.jsonl")) == "completed"


def test_another_shard_set_of_the_same_classes_is_evaluated(
    trained: Path, shards: Path, tmp_path: Path
) -> None:
    """It is recorded as what it is, and is no accuracy of the run; other classes are refused."""
    run = shutil.copytree(trained, tmp_path / "run", symlinks=True)
    own = own_evaluations(read_events(run / "events.jsonl"))[-1]
    predictions = RunDirectory(run).predictions("val").read_bytes()
    other = rewrite_manifest(shards, tmp_path / "other", seed=1, name="Shapes, again", mean=0.0)
    with evaluate_run(2, run, "--shards", other) as job:
        assert job.wait() == [0, 0], job.errors
    assert "val of Shapes, again, 53 images" in job.outputs[0]
    assert "not the shard set that the run was trained on" in job.outputs[0]
    row = rows(run, "eval")[-1]
    assert (row["own_shards"], row["shard_set"]) == (False, "Shapes, again")
    assert row["manifest_sha256"] == manifest_sha256(other) != own.manifest_sha256
    # The same images, normalized by what the network learned with, are the same to it.
    assert (row["correct1"], row["loss"]) == (own.correct1, own.loss)
    assert own_evaluations(read_events(run / "events.jsonl"))[-1] == own
    assert RunDirectory(run).predictions("val").read_bytes() == predictions
    classes = ["ball", *read_manifest(shards).class_names[1:]]
    renamed = rewrite_manifest(shards, tmp_path / "renamed", class_names=classes)
    sentence = fail(evaluate_run(2, run, "--shards", renamed))
    assert "has other classes" in sentence
    assert "class 0 is 'ball' in place of 'checker'" in sentence


def test_an_evaluation_takes_any_checkpoint_and_split(trained: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trained / "checkpoints/step-00000012", tmp_path / "a copy")
    for name, step in (("best", None), ("12", 12), (str(copy), 12)):
        with evaluate_run(1, trained, "--split", "train", "--checkpoint", name, "--json") as job:
            assert job.wait() == [0], job.errors
        answer = json.loads(job.outputs[0])
        assert answer["seen"] == answer["expected"] == NUM_TRAIN
        assert step is None or answer["step"] == step


def test_a_relative_shard_set_holds_in_every_folder(
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    monkeypatch.chdir(shards.parent)
    assert train_here(Path(shards.name), run, "--log_every_steps", 2, "--max-steps", 1) == 0
    assert [row["step"] for row in rows(run, "train")] == [1], "what is left is logged"
    output = capsys.readouterr().out
    assert f"--data.shards {shards.name} is stored as {shards}\n" in output
    assert "\ndone so far, 1 step: without --max-steps the command goes on" in output
    monkeypatch.chdir(tmp_path)
    assert read_settings(RunDirectory(run)).config.data.shards == str(shards)
    assert evaluate_module.main(["--run-dir", "run"]) == 0


def test_an_evaluation_that_cannot_be_exact_is_an_error(
    trained: Path, shards: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(shards, tmp_path / "moved")
    (moved / "val-000001.tar").unlink()
    assert "val-000001.tar" in fail(evaluate_run(2, trained, "--shards", moved))
    assert "test" in fail(evaluate_run(2, trained, "--split", "test"))
    assert "no checkpoint '13'" in fail(evaluate_run(2, trained, "--checkpoint", "13"))
    assert "nowhere" in fail(evaluate_run(2, trained, "--shards", tmp_path / "nowhere"))
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    assert "is not a run directory" in fail(evaluate_run(2, nothing))


def test_an_evaluation_is_of_one_checkpoint(trained: Path) -> None:
    expected = call_on_ranks(1, evaluate_as_rank_sees, trained)[0]
    found = call_on_ranks(2, evaluate_as_rank_sees, trained)[0]
    assert {**found, "seconds": 0} == {**expected, "seconds": 0}


def evaluate_as_rank_sees(world: World, run: Path) -> Any:
    """What is printed where each rank sees another checkpoint as the newest one."""

    def newest(directory: Path) -> Path:
        return checkpoint.paths(directory)[world.rank]

    directory, output = RunDirectory(run), io.StringIO()
    options = evaluate_module.Options(run_dir=run, json=True)
    with (
        mock.patch.object(checkpoint, "newest_good", newest),
        contextlib.redirect_stdout(output),
        contextlib.ExitStack() as resources,
    ):
        settings = read_settings(directory)
        evaluate_module._evaluate_run(options, directory, settings, world, resources)
    return json.loads(output.getvalue()) if world.is_main else None


def test_a_checkpoint_that_the_run_deletes_is_no_error(trained: Path, tmp_path: Path) -> None:
    run = RunDirectory(shutil.copytree(trained, tmp_path / "run", symlinks=True))
    newest, older, *_ = checkpoint.paths(run.checkpoints)
    load = checkpoint.load

    def load_late(path: Path) -> dict[str, Any]:
        shutil.rmtree(newest, ignore_errors=True)
        return load(path)

    options = evaluate_module.Options(run_dir=run.path)
    with mock.patch.object(checkpoint, "load", load_late), contextlib.ExitStack() as resources:
        evaluate_module._evaluate_run(options, run, read_settings(run), SINGLE, resources)
    with np.load(run.predictions("val")) as saved:
        assert saved["step"] == checkpoint.step_of(older)


def test_predictions_are_those_of_the_runs_own_checkpoints(
    trained: Path, shards: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    finish(1, shards, other, "--epochs", 2, "--seed", 1, "--max-steps", 2)
    before = RunDirectory(trained).predictions("val").read_bytes()
    path = other / "checkpoints/step-00000002"
    sentence = fail(evaluate_run(2, trained, "--checkpoint", path))
    assert f": --checkpoint {path} is of another run: give --run-dir {other}" in sentence
    copy = shutil.copytree(path, tmp_path / "another")
    sentence = fail(evaluate_run(2, trained, "--checkpoint", copy))
    assert "another configuration (seed: was 1, is 0)" in sentence
    copy = shutil.copytree(trained / "checkpoints/step-00000012", tmp_path / "a copy")
    with evaluate_run(1, trained, "--checkpoint", copy) as job:
        assert job.wait() == [0], job.errors
    warning = f"warning: the evaluation is not recorded: {copy} is not in {trained}/checkpoints\n"
    assert job.errors == [warning]
    assert RunDirectory(trained).predictions("val").read_bytes() == before


def test_an_evaluation_needs_no_room(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run", symlinks=True)
    shutil.rmtree(run / "predictions")
    (run / "predictions").touch()
    with evaluate_run(2, run, "--json") as job:
        assert job.wait() == [0, 0], job.errors
    assert json.loads(job.outputs[0])["seen"] == NUM_VAL
    assert job.errors[0].startswith("warning: the evaluation is not recorded: ")
