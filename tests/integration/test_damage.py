"""Images that go bad under a run: what training gets over, and what evaluation never does."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from data_prep.shard_set.index import read_index
from data_prep.shard_set.manifest import read_manifest
from pipeline.data.order.partition import epoch_order
from pipeline.explain.explain import explain
from pipeline.report.__main__ import write_report
from pipeline.run.directory import RunDirectory
from tests.integration.training import (
    NUM_TRAIN,
    PLAN_OF_TWO,
    flip_bit,
    make_shards,
    rows,
    training,
    wait_for_step,
)
from tests.pipeline.rank_jobs import Job
from tests.pipeline.report.html_tree import parse

TAR = r"train-\d+\.tar"
TWO_OF_TRAIN = ("--data.max_corrupt_ratio", 2.4 / NUM_TRAIN)


@pytest.fixture(scope="module")
def whole(scratch: Path) -> Path:
    return make_shards(scratch / "whole")


@pytest.fixture
def shards(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "shards")


def train(shards: Path, run: Path, *options: object) -> tuple[list[int | None], Job]:
    """One epoch on two ranks."""
    words = training(shards, run, "--metrics.enabled", "false", "--epochs", 1, *options)
    with Job(2, "pipeline.train", words) as job:
        return job.wait(), job


def sample_of(rank: int) -> int:
    """One of `train` that the rank reads in its second step, and holds if the split is resident."""
    positions = PLAN_OF_TWO.positions(1, 0, rank)
    order = epoch_order(NUM_TRAIN, 0, 0)
    mine = range(rank * NUM_TRAIN // 2, (rank + 1) * NUM_TRAIN // 2)
    return next(int(order[place]) for place in positions if order[place] in mine)


@pytest.mark.parametrize("reader", [(), ("--data.reader", "resident")], ids=["tar", "resident"])
def test_a_few_damaged_images_of_train_are_reported_and_replaced(
    shards: Path, tmp_path: Path, reader: tuple[object, ...]
) -> None:
    """By every rank on its standard error, and by rank 0 in the events and the report."""
    run, split = RunDirectory(tmp_path / "run"), read_manifest(shards).split("train")
    samples = [sample_of(rank) for rank in range(2)]
    names = [flip_bit(shards, "train", sample) for sample in samples]
    codes, job = train(shards, run.path, *TWO_OF_TRAIN, *reader)
    assert codes == [0, 0], job.errors
    for name, error in zip(names, job.errors, strict=True):
        assert error.count(f"member {name}: not the image that was written (CRC-32)") == 1
    (evaluation,) = rows(run.path, "eval")
    assert evaluation["seen"] == evaluation["expected"]
    alarms = rows(run.path, "alarm")
    assert [(alarm["reason"], alarm["rank"], alarm["sample"]) for alarm in alarms] == [
        ("damaged_image", rank, sample) for rank, sample in enumerate(samples)
    ]
    write_report([run], run.report)
    timeline = parse(run.report.read_text()).with_id("time").text
    for alarm, sample, name in zip(alarms, samples, names, strict=True):
        shard = split.filenames[int(read_index(shards, split)[sample]["shard"])]
        assert alarm["shard"] == shard
        assert f"member {name}: not the image" in alarm["what"]
        assert f"rank {alarm['rank']}, sample {sample:,} of train: " in timeline
        assert alarm["what"] in timeline


@pytest.mark.parametrize("options", [(), TWO_OF_TRAIN])
def test_too_many_damaged_images_of_train_end_the_run(
    shards: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    for sample in range(0, NUM_TRAIN, 10):
        flip_bit(shards, "train", sample)
    codes, job = train(shards, tmp_path / "run", *options)
    assert codes == [1, 1]
    assert "CRC-32" in job.errors[0]
    total = "3 damaged images, and 2" if options else "1 damaged image, and 0"
    assert f"that makes {total} may be (data.max_corrupt_ratio)" in job.errors[0]
    (end,) = rows(tmp_path / "run", "end")
    assert end["outcome"] == "failed"
    cause = explain(RunDirectory(tmp_path / "run")).cause
    assert cause is not None
    assert (cause.kind, cause.shard) == ("corrupt_samples", re.findall(TAR, end["error"])[0])
    assert cause.rank == int(end["error"].split()[1]), "the one that found them"


def test_a_rank_that_failed_is_waited_for_by_none_that_still_starts(
    shards: Path, tmp_path: Path
) -> None:
    """Rank 0 keeps the store: whoever connects to it after that waits for minutes."""
    for sample in range(0, NUM_TRAIN, 10):
        flip_bit(shards, "train", sample)
    words = training(shards, tmp_path / "run", "--metrics.enabled", "false", "--epochs", 1)
    with Job(2, "tests.integration.sleepy_train", ["1:watching:0:3", "--", *words]) as job:
        codes = job.wait()
    assert codes == [1, 1]
    assert "CRC-32" in job.errors[0]


@pytest.mark.parametrize("reader", [(), ("--data.reader", "resident")], ids=["tar", "resident"])
def test_a_damaged_image_of_val_ends_the_evaluation(
    shards: Path, tmp_path: Path, reader: tuple[object, ...]
) -> None:
    """Where val is resident, before a step is done."""
    name = flip_bit(shards, "val", 7)
    codes, job = train(shards, tmp_path / "run", "--data.max_corrupt_ratio", 1, *reader)
    assert codes == [1, 1]
    assert f"member {name}: not the image that was written (CRC-32)" in job.errors[0]
    assert rows(tmp_path / "run", "eval") == []
    assert bool(rows(tmp_path / "run", "train")) == (not reader)


def test_a_shard_that_is_cut_under_a_run_ends_it(shards: Path, tmp_path: Path) -> None:
    split = read_manifest(shards).split("train")
    path = shards / split.filenames[2]
    content = path.read_bytes()
    words = training(shards, tmp_path / "run", "--metrics.enabled", "false", "--epochs", 200)
    with Job(2, "pipeline.train", words) as job:
        wait_for_step(tmp_path / "run", 3)
        path.write_bytes(content[:1000])
        assert job.wait() == [1, 1]
    assert f"{path.name}" in job.errors[0]
    assert "cut off" in job.errors[0] or "CRC-32" in job.errors[0]
