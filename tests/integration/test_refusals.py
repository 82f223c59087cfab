"""What cannot be trained is refused with a sentence, once for all ranks."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from data_prep.shard_set.index import read_index
from data_prep.shard_set.manifest import read_manifest
from pipeline.data.order.partition import epoch_order
from pipeline.metrics.rank_file import read_rank_file
from pipeline.run.directory import RunDirectory
from tests.integration.training import (
    LONG,
    NUM_TRAIN,
    PLAN_OF_TWO,
    TRAIN,
    all_rows,
    fail,
    finish,
    rank_log,
    ranks_of,
    rewrite_manifest,
    rows,
    torchrun,
    train,
    training,
    wait_for_step,
)
from tests.machine import DEADLINE_SECONDS
from tests.pipeline.monitoring import wait_for
from tests.pipeline.rank_jobs import Job

OPTION_ODD = ["--global_batch_size", 25]
OPTION_LARGE = ["--global_batch_size", 300]


def make_other_shards(shards: Path, path: Path) -> Path:
    """The same files with another manifest."""
    return rewrite_manifest(shards, path, seed=1)


def spoil(shards: Path, path: Path, step: int, rank: int) -> Path:
    """A copy in which one sample is damaged, which `rank` of two reads for `step`."""
    shutil.copytree(shards, path)
    sample = epoch_order(NUM_TRAIN, 0, 0)[PLAN_OF_TWO.positions(step, 0, rank).start]
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
    damaged, asleep = spoil(shards, tmp_path / "damaged", step=7, rank=1), tmp_path / "asleep"
    words = training(damaged, run, "--data.prefetch_batches", 1)
    sleepy = [f"1:reading:3:10000:{asleep}", "--", *words]  # before the damage, and once
    with torchrun(2, "tests.integration.sleepy_train", sleepy, logs, max_restarts=1) as child:
        wait_for(asleep.exists, "three steps")
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
