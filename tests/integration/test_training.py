"""Whole training jobs on a small shard set: real processes that talk over gloo."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from data_prep.shard_set.index import read_index
from data_prep.shard_set.manifest import hash_class_names, manifest_sha256, read_manifest
from launch.outcome import outcome_of
from launch.runs import describe
from pipeline.data.order.partition import BatchPlan, epoch_order
from pipeline.evaluate import __main__ as evaluate_module
from pipeline.metrics.outcomes import read_run_status
from pipeline.metrics.rank_file import read_rank_file
from pipeline.ranks.world import World
from pipeline.run import checkpoint
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import own_evaluations, read_events
from pipeline.run.phase import PHASE_LABELS
from pipeline.run.settings import read_settings
from pipeline.train import log_interval, loop
from pipeline.train.evaluation import Evaluation, evaluate
from tests.integration.training import (
    GLOBAL_BATCH,
    NUM_TRAIN,
    NUM_VAL,
    STEPS_PER_EPOCH,
    all_rows,
    assert_same_state,
    make_shards,
    newest_state,
    newest_step,
    rank_log,
    ranks_of,
    rows,
    torchrun,
    train_here,
    training,
    wait_for_step,
)
from tests.pipeline.monitoring import parse
from tests.pipeline.rank_jobs import DEADLINE_SECONDS, Job, call_on_ranks
from tests.pipeline.worlds import SINGLE

STOPPED = 75
TRAIN = "pipeline.train"
EVALUATE = "pipeline.evaluate"


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("training") / "shards")


def train(size: int, shards: Path, run: Path, *options: object) -> Job:
    return Job(size, TRAIN, training(shards, run, *options))


def finish(size: int, shards: Path, run: Path, *options: object) -> Job:
    """A job that does all that it is asked."""
    with train(size, shards, run, *options) as job:
        assert job.wait() == [0] * size, job.errors
    return job


def fail(job: Job) -> str:
    """The last line of what rank 0 tells of a job that fails on every rank."""
    with job:
        assert job.wait() == [1] * len(job.processes)
    assert "Traceback" not in "".join(job.errors)
    *_, sentence = job.errors[0].splitlines()
    assert sentence.startswith("error: ")
    return sentence


def test_a_whole_run_says_what_it_does(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--metrics.enabled", "false", "--optim.clip_norm", 2]
    job = finish(2, shards, run, *options)
    events = all_rows(run)
    written = RunDirectory(run).events.read_text().splitlines()
    assert [json.loads(line) for line in written] == events, "fields as declared, and no others"
    for row in events:
        assert row["epoch"] == pytest.approx(row["step"] / STEPS_PER_EPOCH, abs=1e-6)
    assert [row["kind"] for row in events if row["kind"] not in ("train", "checkpoint")] == [
        *("run", "eval", "eval", "eval", "end")
    ]
    target = 3 * STEPS_PER_EPOCH
    assert [row["step"] for row in rows(run, "train")] == list(range(1, target + 1))
    assert all(set(row["phase_seconds"]) == set(PHASE_LABELS) for row in rows(run, "train"))
    assert all(row["grad_norm"] > 0 for row in rows(run, "train"))
    assert [row["step"] for row in rows(run, "checkpoint")] == list(range(4, target + 1, 4))
    for row in rows(run, "eval"):
        assert row["seen"] == row["expected"] == NUM_VAL
        assert (row["by"], row["split"], row["views"], row["own_shards"]) == (
            "train",
            "val",
            1,
            True,
        )
        assert row["shard_set"] == events[0]["shard_set"] == "generated shapes"
        assert row["manifest_sha256"] == manifest_sha256(shards)
    assert events[-1]["outcome"] == "completed"
    assert events[0]["target_steps"] == target

    console, other_console = job.outputs
    assert "\r" not in console
    assert "metrics" not in console
    assert "24 = 2 ranks × 12 local" in console
    assert console.count("\nstep ") == target
    assert console.count("\nval: top-1 ") == 3
    assert (other_console, *job.errors) == ("", "", "")

    names = {path.name for path in run.iterdir()}
    assert names == {".lock", "config.json", "events.jsonl", "checkpoints", "predictions"}
    kept = {path.name for path in (run / "checkpoints").iterdir()}
    best = (run / "checkpoints/best").resolve().name
    assert kept == {"best", best, "step-00000020", "step-00000024"}
    evaluations = {f"step-{row['step']:08d}": row["top1"] for row in rows(run, "eval")}
    assert evaluations[best] == max(evaluations.values())

    size = RunDirectory(run).events.stat().st_size
    again = finish(2, shards, run, *options)
    assert again.outputs[0].splitlines()[-1] == "nothing to do: 24 steps are done"
    assert RunDirectory(run).events.stat().st_size == size


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in rows(run, "train")]


def test_however_a_batch_is_divided_it_is_the_same_batch(shards: Path, tmp_path: Path) -> None:
    """Four parts of a batch are one after another, or side by side: BatchNorm looks at one part."""
    found = []
    for size, accumulation_steps in ((1, 4), (2, 2), (4, 1)):
        run = tmp_path / f"run-{size}"
        options = ["--accumulation_steps", accumulation_steps, "--precision", "fp32"]
        options += ["--model.dropout", 0, "--data.drop_last", "false", "--epochs", 1]
        finish(
            size,
            shards,
            run,
            *options,
            "--optim.learning_rate",
            0.001,
            "--schedule.warmup_ratio",
            0,
        )
        found.append(losses(run))
    assert len(found[0]) == STEPS_PER_EPOCH + 1, "the ragged batch too"
    for other in found[1:]:
        assert other[:5] == pytest.approx(found[0][:5], rel=1e-5)
        # Then rounding has moved some maximum of a pooling window, and its gradient, elsewhere.
        assert other == pytest.approx(found[0], rel=0.02)


def kill_and_rerun(size: int, shards: Path, run: Path, options: list[object], kills: int) -> None:
    moments = random.Random(size)
    for number in range(kills):
        with train(size, shards, run, *options) as job:
            wait_for_step(run, min(newest_step(run) + moments.randint(1, 6), 20), number + 1)
            victim = moments.randrange(size)
            job.processes[victim].kill()
            codes = job.wait()
            assert codes[victim] == -signal.SIGKILL
            assert set(codes) == {-signal.SIGKILL, 1}, "the others notice, and do not hang"
            if victim != 0:
                assert "lost another rank" in job.errors[0].splitlines()[-1]
                assert rows(run, "end")[-1]["cause"] == "lost_rank"
    finish(size, shards, run, *options)
    assert rows(run, "run")[-1]["resumed_from"] is not None


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (2, ["--precision", "fp32", "--distributed.bucket_bytes", 1 << 18]),
        (3, ["--precision", "bf16"]),
        (2, ["--precision", "fp16", "--accumulation_steps", 2, "--optim.clip_norm", 1]),
        (3, ["--precision", "fp32", "--optim.name", "adamw"]),
    ],
    ids=["fp32", "three ranks bf16", "fp16 accumulated", "three ranks adamw"],
)
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(
    size: int, options: list[object], shards: Path, tmp_path: Path
) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    options = [*options, "--checkpoint.every_epochs", 0.25]
    finish(size, shards, undisturbed, *options)
    kill_and_rerun(size, shards, killed, options, kills=4)
    assert_same_state(killed, undisturbed)
    assert [row["loss"] for row in rows(killed, "eval")] == [
        row["loss"] for row in rows(undisturbed, "eval")
    ]
    assert losses(killed) == losses(undisturbed), "the report shows one history"
    leftovers = [*killed.rglob(".tmp-*")]
    assert leftovers == []


def test_the_loss_scale_survives_and_skipped_steps_count(shards: Path, tmp_path: Path) -> None:
    """Unscaled pixels give gradients that overflow until the scale has fallen."""
    options = ["--precision", "fp16", "--augment.normalize", "none", "--epochs", 2]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finish(2, shards, whole, *options)
    for max_steps in (3, 9, 16):
        finish(2, shards, parts, *options, "--max-steps", max_steps)
        assert newest_step(parts) == max_steps
    assert_same_state(parts, whole)
    steps = rows(parts, "train")
    num_skipped = sum(row["skipped_steps"] == row["step"] for row in steps)
    assert 1 <= num_skipped < 16
    first, *rates = [row["learning_rate"] for row in steps]
    assert rates[:num_skipped] == [first] * num_skipped, "a skipped step moves no schedule"
    assert rates[num_skipped] != first
    assert [row["resumed_from"] for row in rows(parts, "run")] == [None, 3, 9]
    assert [row["outcome"] for row in rows(parts, "end")] == ["stopped", "stopped", "completed"]


LONG = ["--epochs", 200, "--evaluation.every_epochs", 0, "--checkpoint.every_epochs", 0]


def resume_and_compare(size: int, shards: Path, run: Path, options: list[object]) -> None:
    """Nine steps more, and then the same as a run that was never stopped."""
    (row,) = rows(run, "checkpoint")
    assert row["reason"] == "preempt"
    assert row["step"] == newest_step(run)
    last = row["step"] + 9
    finish(size, shards, run, *options, "--max-steps", last)
    finish(size, shards, run.with_name("undisturbed"), *options, "--max-steps", last)
    assert_same_state(run, run.with_name("undisturbed"))


@pytest.mark.parametrize("how", ["file", "SIGTERM to torchrun", "SIGTERM twice", "Ctrl-C"])
def test_a_run_that_torchrun_started_stops_and_goes_on(
    how: str, shards: Path, tmp_path: Path
) -> None:
    run, logs = tmp_path / "run", tmp_path / "logs"
    with torchrun(2, TRAIN, training(shards, run, *LONG), logs) as child:
        wait_for_step(run, random.Random(how).randint(1, 20))
        match how:
            case "file":
                (run / "STOP").touch()
            case "Ctrl-C":
                os.killpg(child.pid, signal.SIGINT)
            case _:
                child.terminate()
        if how == "SIGTERM twice":
            for pid in ranks_of(child).values():
                os.kill(pid, signal.SIGTERM)
        output, _ = child.communicate(timeout=DEADLINE_SECONDS)
    assert child.returncode != 0
    assert "Traceback" not in rank_log(logs, 0, "stderr") + rank_log(logs, 1, "stderr")
    if how == "file":
        assert f"exitcode  : {STOPPED}" in output
    (signal_row,) = rows(run, "signal")
    assert signal_row["source"] == {"file": "STOP file", "Ctrl-C": "SIGINT"}.get(how, "SIGTERM")
    (end,) = rows(run, "end")
    assert (end["outcome"], end["step"]) == ("stopped", signal_row["step"])
    assert rank_log(logs, 1, "stdout") == ""
    resume_and_compare(2, shards, run, LONG)
    assert not (run / "STOP").exists()


@pytest.mark.parametrize(("size", "precision", "accumulation"), [(2, "bf16", 2), (3, "fp16", 1)])
def test_a_signal_to_one_rank_stops_all(
    size: int, precision: str, accumulation: int, shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = [*LONG, "--precision", precision, "--accumulation_steps", accumulation]
    with train(size, shards, run, *options) as job:
        wait_for_step(run, 5)
        victim = job.processes[-1].pid
        assert victim is not None
        for _ in range(2):
            os.kill(victim, signal.SIGUSR1)
        assert job.wait() == [STOPPED] * size
    assert rows(run, "signal")[0]["source"] == "SIGUSR1"
    resume_and_compare(size, shards, run, options)


def test_a_checkpoint_is_not_bound_to_a_number_of_ranks(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for size, max_steps in ((2, 5), (3, 9), (1, 13), (4, 24)):
        finish(size, shards, run, "--max-steps", max_steps)
        assert newest_step(run) == max_steps
    assert [row["world_size"] for row in rows(run, "run")] == [2, 3, 1, 4]
    assert [row["step"] for row in rows(run, "train")] == list(range(1, 25))
    assert rows(run, "end")[-1]["outcome"] == "completed"


def test_a_run_on_other_numbers_of_ranks_is_the_same_run(shards: Path, tmp_path: Path) -> None:
    """8, then 4, then 16; BatchNorm looks at a part of a batch, so the parts stay as they are."""
    options = ("--global_batch_size", 48, "--precision", "fp32", "--optim.learning_rate", 0.001)
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    finish(4, shards, whole, *options, "--accumulation_steps", 4)
    for size, accumulation_steps, max_steps in ((8, 2, 3), (4, 4, 7), (16, 1, 100)):
        parts = ("--accumulation_steps", accumulation_steps, "--max-steps", max_steps)
        finish(size, shards, moved, *options, *parts)
    assert [row["world_size"] for row in rows(moved, "run")] == [8, 4, 16]
    assert {row["global_batch_size"] for row in rows(moved, "run")} == {48}
    assert rows(moved, "run")[-1]["target_steps"] == rows(whole, "run")[0]["target_steps"] == 12
    found, expected = rows(moved, "train"), rows(whole, "train")
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    rates = [[row["learning_rate"] for row in some] for some in (found, expected)]
    assert rates[0] == rates[1]
    assert losses(moved)[:5] == pytest.approx(losses(whole)[:5], rel=1e-5)
    # Then rounding has moved some maximum of a pooling window, and its gradient, elsewhere.
    assert losses(moved) == pytest.approx(losses(whole), rel=0.02)


def test_a_resume_reads_no_more_than_its_steps_need(shards: Path, tmp_path: Path) -> None:
    """By the reader's own count of all it has read, ahead of the first step too."""
    run = tmp_path / "run"
    finish(2, shards, run, "--max-steps", 20)
    finish(2, shards, run, "--max-steps", 21)
    order = epoch_order(NUM_TRAIN, 0, 20 // STEPS_PER_EPOCH)
    plan = BatchPlan(
        num_samples=NUM_TRAIN,
        global_batch_size=GLOBAL_BATCH,
        num_replicas=2,
        accumulation_steps=1,
        drop_last=True,
    )
    manifest = read_manifest(shards)
    index = read_index(shards, manifest.split("train"))
    for rank in (0, 1):
        samples = parse((run / f"metrics/rank-{rank:05d}.prom").read_bytes())
        found = sum(v for (name, _), v in samples.items() if name.endswith("bytes_read_total"))
        positions = plan.positions(20, 0, rank)
        expected = index["num_bytes"][order[positions.start : positions.stop]].sum()
        assert found == expected < manifest.split("train").shard_bytes[0]


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs."""
    run = tmp_path_factory.mktemp("trained") / "run"
    finish(2, shards, run, "--epochs", 2)
    return run


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
    described = describe(RunDirectory(run), events, run_status, time.time())
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


def make_other_shards(shards: Path, path: Path) -> Path:
    """The same files with another manifest."""
    return rewrite_manifest(shards, path, seed=1)


def rewrite_manifest(shards: Path, path: Path, mean: float | None = None, **fields: object) -> Path:
    """The same files with other `fields` in their manifest, and another mean of their pixels."""
    shutil.copytree(shards, path)
    manifest = json.loads((path / "_info.json").read_bytes()) | fields
    manifest["class_names_sha256"] = hash_class_names(tuple(manifest["class_names"]))
    if mean is not None:
        manifest["statistics"]["mean"] = [mean] * 3
    (path / "_info.json").write_text(json.dumps(manifest))
    return path


def spoil(shards: Path, path: Path, step: int, rank: int) -> Path:
    """A copy in which one sample is damaged, which `rank` of two reads for `step`."""
    shutil.copytree(shards, path)
    plan = BatchPlan(
        num_samples=NUM_TRAIN,
        global_batch_size=GLOBAL_BATCH,
        num_replicas=2,
        accumulation_steps=1,
        drop_last=True,
    )
    sample = epoch_order(NUM_TRAIN, 0, 0)[plan.positions(step, 0, rank).start]
    split = read_manifest(shards).split("train")
    entry = read_index(shards, split)[sample]
    with (path / split.filenames[int(entry["shard"])]).open("r+b") as file:
        file.seek(int(entry["offset"]))
        file.write(bytes(int(entry["num_bytes"])))
    return path


def test_a_rank_that_fails_is_named_by_rank_0(shards: Path, tmp_path: Path) -> None:
    run, logs = tmp_path / "run", tmp_path / "logs"
    damaged = spoil(shards, tmp_path / "damaged", step=5, rank=1)
    with torchrun(2, TRAIN, training(damaged, run), logs) as child:
        output, _ = child.communicate(timeout=DEADLINE_SECONDS)
    assert child.returncode != 0
    *_, last = rank_log(logs, 0, "stderr").splitlines()
    assert last.startswith("error: rank 1 on ")
    assert "train-00000" in last
    assert f"verify {damaged} --full" in last
    assert "Traceback" not in rank_log(logs, 0, "stderr") + rank_log(logs, 1, "stderr")
    assert "ShardSetError" in output, "torchrun's own summary names it too"
    end = rows(run, "end")[0]
    assert (end["outcome"], end["step"]) == ("failed", 5)
    assert f"error: {end['error']}" == last


def test_a_job_that_torchrun_starts_again_knows_nothing_of_its_last_attempt(
    shards: Path, tmp_path: Path
) -> None:
    """Its ranks find each other, and tell what ended them and not what ended those before."""
    run, logs = tmp_path / "run", tmp_path / "logs"
    damaged = spoil(shards, tmp_path / "damaged", step=7, rank=1)
    options = ["--data.prefetch_batches", 1]
    with torchrun(2, TRAIN, training(damaged, run, *options), logs, max_restarts=1) as child:
        wait_for_step(run, 1)
        os.kill(ranks_of(child)[1], signal.SIGKILL)
        child.communicate(timeout=DEADLINE_SECONDS)
    assert "lost another rank" in rank_log(logs, 0, "stderr")
    *_, last = rank_log(logs, 0, "stderr", attempt=1).splitlines()
    assert last.startswith("error: rank 1 on ")
    assert "train-00000" in last


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--seed", 1], r"another configuration \(seed: was 0, is 1\): use another --run-dir"),
        (["--epochs", 4], r"a run of 2 epochs, which cannot become one of 4: .* --fork-from /"),
        (["--data.shards", "OTHER"], r"another shard set: its _info\.json had the hash"),
    ],
)
def test_a_run_is_not_continued_as_another(
    options: list[object], sentence: str, trained: Path, shards: Path, tmp_path: Path
) -> None:
    other = make_other_shards(shards, tmp_path / "other")
    options = [other if option == "OTHER" else option for option in options]
    before = RunDirectory(trained).events.read_bytes()
    job = Job(2, TRAIN, training(shards, trained, "--epochs", 2, *options))
    assert re.search(sentence, fail(job))
    assert RunDirectory(trained).events.read_bytes() == before


def test_what_cannot_start_says_why(shards: Path, tmp_path: Path) -> None:
    """On all ranks alike, so that rank 0 alone tells it, and without the name of a rank."""
    run, file = tmp_path / "run", tmp_path / "file"
    file.touch()
    small = shutil.copytree(shards, tmp_path / "small")
    (small / "train-000003.tar").unlink()

    def sentence(size: int = 2, shards: Path = shards, run: Path = run, *options: object) -> str:
        return fail(train(size, shards, run, *options))

    assert "cannot be divided among 2 replicas × 1" in sentence(2, shards, run, *OPTION_ODD)
    assert "epochs is 0.01, less than half a step" in sentence(2, shards, run, "--epochs", 0.01)
    assert "more than the split's 200 samples" in sentence(2, shards, run, *OPTION_LARGE)
    assert "--augment.evaluation_pixels has no effect: it needs images of several sizes" in (
        sentence(2, shards, run, "--augment.evaluation_pixels", 40)
    )
    part_of_one = ("--data.drop_last", "false", "--global_batch_size", 66)
    assert "one image, and BatchNorm on maps of 1×1 needs two: use --data.drop_last true" in (
        sentence(2, shards, run, *part_of_one)
    )
    assert "train-000003.tar" in sentence(2, small)
    assert "nowhere" in sentence(2, tmp_path / "nowhere")
    assert "a file of that name is in the way" in sentence(2, shards, file)
    assert "a file of that name is in the way" in sentence(2, shards, file / "run")
    assert "cannot be written to" in sentence(2, shards, Path("/proc/run"))
    assert not list(run.glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--optim.momentum", 0.5], "optim.momentum is 0.9 on rank 0 and 0.5 on rank 2"),
        (["--max-steps", 3], "--max-steps is None on rank 0 and 3 on rank 2"),
        (["--log_every_steps", 2], "log_every_steps is 1 on rank 0 and 2 on rank 2"),
        (["--data.shards", "OTHER"], "the hash of the manifest is "),
    ],
)
def test_ranks_that_would_not_do_the_same_do_nothing(
    words: list[object], sentence: str, shards: Path, tmp_path: Path
) -> None:
    other = make_other_shards(shards, tmp_path / "other")
    words = [other if word == "OTHER" else word for word in words]
    run = tmp_path / "run"
    found = fail(Job(3, TRAIN, training(shards, run), words))
    assert found.startswith(f"error: {sentence}")
    assert found.endswith("start all ranks with the same command, on the same shard set")
    assert not list(run.glob("config.json"))


def test_what_is_of_a_host_may_differ(shards: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(shards, tmp_path / "moved")
    words = ["--data.shards", moved, "--data.decode_threads", 2, "--metrics.enabled", "true"]
    options = ("--max-steps", 2, "--metrics.enabled", "false")
    with Job(2, TRAIN, training(shards, tmp_path / "run", *options), words) as job:
        assert job.wait() == [0, 0], job.errors


def test_what_could_not_go_on_is_the_last_event(shards: Path, tmp_path: Path) -> None:
    run, nowhere = tmp_path / "run", tmp_path / "nowhere"
    for step in (0, 3):
        sentence = fail(train(2, nowhere, run))
        end = all_rows(run)[-1]
        assert (end["kind"], end["step"], end["outcome"]) == ("end", step, "failed")
        assert f"error: {end['error']}" == sentence
        finish(2, shards, run, "--max-steps", 3)
    (run / "checkpoints/step-00000003/state.pt").write_bytes(b"")
    sentence = fail(train(2, shards, run))
    assert "every checkpoint" in sentence
    assert f"error: {rows(run, 'end')[-1]['error']}" == sentence


def test_a_run_with_nothing_to_do_keeps_its_last_metrics(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finish(1, shards, run, "--epochs", 1)
    path = run / "metrics/rank-00000.prom"
    published = path.read_bytes()
    finish(1, shards, run, "--epochs", 1)
    assert path.read_bytes() == published
    assert read_rank_file(path).said == "completed"


@pytest.mark.parametrize("is_everywhere", [True, False])
def test_a_device_that_is_missing_is_reported_once(
    is_everywhere: bool, shards: Path, tmp_path: Path
) -> None:
    options = ["--distributed.device", "cuda"]
    job = Job(
        3,
        TRAIN,
        training(shards, tmp_path / "run", *(options if is_everywhere else [])),
        [] if is_everywhere else options,
    )
    sentence = fail(job)
    assert " has no GPU for 3 ranks: use --distributed.device cpu" in sentence
    assert sentence.startswith("error: rank 2 on ") is not is_everywhere
    assert [bool(error) for error in job.errors] == [True, False, not is_everywhere]


OPTION_ODD = ["--global_batch_size", 25]
OPTION_LARGE = ["--global_batch_size", 300]


def test_a_wrong_command_is_reported_once() -> None:
    with Job(2, TRAIN, ["cifar11"]) as job:
        assert job.wait() == [1, 1]
    assert re.fullmatch(
        "error: no recipe 'cifar11'; did you mean cifar10?.*, cifar10, .*\n", job.errors[0]
    )
    assert job.errors[1] == ""


def test_a_run_has_one_job_at_a_time(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with train(2, shards, run, *LONG) as job:
        wait_for_step(run, 1)
        assert "in use by another job" in fail(train(2, shards, run, *LONG))
        assert all(process.is_alive() for process in job.processes)


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
    run, disk = tmp_path / "run", tmp_path / "run/checkpoints"
    disk.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True).returncode:
        message = "a small file system cannot be mounted: not root, or in a container without mount"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    try:
        with train(2, shards, run, "--epochs", 2) as job:
            codes = job.wait()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert codes == [1, 1]
    assert job.outputs[0].count("warning: no checkpoint saved: No space left") == 4
    assert "the checkpoint of step 16 could not be saved: No space" in job.errors[0]
    assert " MB free; once that is mended, run the same command again" in job.errors[0]
    assert rows(run, "end")[0]["outcome"] == "failed"
    published = (run / "metrics/rank-00000.prom").read_text()
    assert 'alexnet_checkpoint_failures_total{kind="periodic"} 5.0' in published
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
