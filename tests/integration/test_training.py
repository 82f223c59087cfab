"""Whole training jobs on a small shard set: real processes that talk over gloo."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
from functools import partial
from pathlib import Path

import pytest

from data_prep.shard_set.index import read_index
from data_prep.shard_set.manifest import manifest_sha256, read_manifest
from pipeline.data.order.partition import epoch_order
from pipeline.explain.explain import explain
from pipeline.run.directory import RunDirectory
from pipeline.run.phase import PHASE_LABELS
from tests.integration.training import (
    LONG,
    NUM_TRAIN,
    NUM_VAL,
    PLAN_OF_TWO,
    STEPS_PER_EPOCH,
    TRAIN,
    all_rows,
    assert_same_state,
    finish,
    losses,
    newest_step,
    rank_log,
    ranks_of,
    rows,
    stand_still,
    torchrun,
    train,
    training,
    wait_for_metrics,
    wait_for_step,
)
from tests.machine import DEADLINE_SECONDS, wait_until
from tests.pipeline.monitoring import parse

STOPPED = 75


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
        *("start", "run", "eval", "eval", "eval", "end")
    ]
    (begun,) = rows(run, "run")
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
        assert row["shard_set"] == begun["shard_set"] == "generated shapes"
        assert row["manifest_sha256"] == manifest_sha256(shards)
    assert events[-1]["outcome"] == "completed"
    assert begun["target_steps"] == target

    console, other_console = job.outputs
    assert "\r" not in console
    assert "metrics" not in console
    assert "24 = 2 ranks × 12 local" in console
    assert console.count("\nstep ") == target
    assert console.count("\nval: top-1 ") == 3
    assert (other_console, *job.errors) == ("", "", "")

    names = {path.name for path in run.iterdir()}
    kept = {"config.json", "data.json", "events.jsonl", "checkpoints", "predictions"}
    assert names == {".lock", *kept}
    kept = {path.name for path in (run / "checkpoints").iterdir()}
    best = (run / "checkpoints/best").resolve().name
    assert kept == {"best", best, "step-00000020", "step-00000024"}
    evaluations = {f"step-{row['step']:08d}": row["top1"] for row in rows(run, "eval")}
    assert evaluations[best] == max(evaluations.values())

    size = RunDirectory(run).events.stat().st_size
    again = finish(2, shards, run, *options)
    assert again.outputs[0].splitlines()[-1] == "nothing to do: 24 steps are done"
    assert RunDirectory(run).events.stat().st_size == size


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
        step, victim = newest_step(run) + moments.randint(1, 6), moments.randrange(size)
        with train(size, shards, run, *options, before=partial(stand_still, victim, 12)) as job:
            wait_for_step(run, step, number + 1)
            wait_until(lambda: newest_step(run) > 0)  # a kill may come before a save has ended
            wait_for_metrics(run, job)  # by which the victim is known
            job.processes[victim].kill()
            codes = job.wait()
            assert codes[victim] == -signal.SIGKILL
            assert set(codes) == {-signal.SIGKILL, 1}, "the others notice, and do not hang"
            cause = explain(RunDirectory(run)).cause
            assert cause is not None
            assert (cause.kind, cause.rank) == ("killed_rank", victim)
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
    # More steps than the ranks do before the last kill: it does not find the run complete.
    options = [*options, "--checkpoint.every_epochs", 0.25, "--epochs", 9]
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
                with contextlib.suppress(ProcessLookupError):  # it has left already
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
    manifest = read_manifest(shards)
    index = read_index(shards, manifest.split("train"))
    for rank in (0, 1):
        samples = parse((run / f"metrics/rank-{rank:05d}.prom").read_bytes())
        found = sum(v for (name, _), v in samples.items() if name.endswith("bytes_read_total"))
        positions = PLAN_OF_TWO.positions(20, 0, rank)
        expected = index["num_bytes"][order[positions.start : positions.stop]].sum()
        assert found == expected < manifest.split("train").shard_bytes[0]
