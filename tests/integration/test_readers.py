"""The same run through every reader: the same bits come out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.run.directory import RunDirectory
from tests.data_prep.raw_data import jpeg, run_cli
from tests.ffcv_process import FfcvProcess
from tests.integration.training import assert_same_state, make_large_shards, rows
from tests.pipeline.data.cache.flaky_server import serving
from tests.pipeline.rank_jobs import Job


@pytest.fixture(scope="module")
def shards(scratch: Path) -> Path:
    return make_large_shards(scratch / "shards", 36, 7)


@pytest.fixture(scope="module")
def shards_of_three(scratch: Path) -> Path:
    return make_large_shards(scratch / "shards-of-three", 36, 7, samples_per_shard=3)


def train(num_ranks: int, shards: Path | str, run: Path, *options: object, code: int = 0) -> Job:
    """The network of the blog's CIFAR-10 on crops: quick, and with all that augmentation has."""
    words: list[object] = ["cifar10", "--data.shards", shards, "--run-dir", run]
    words += ["--metrics.enabled", "false", "--global_batch_size", 12, "--epochs", 2]
    words += ["--augment.crop_pixels", 32]
    words += ["--augment.color_noise", 0.1, "--evaluation.every_epochs", 0]
    words += ["--checkpoint.every_epochs", 0, "--accumulation_steps", 2, *options]
    job = Job(num_ranks, "pipeline.train", words)
    with job:
        assert job.wait() == [code] * num_ranks, job.errors
    return job


@pytest.fixture(scope="module", params=[1, 2, 3])
def num_ranks(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def from_tars(scratch: Path, shards: Path, num_ranks: int) -> Path:
    run = scratch / f"tar-{num_ranks}"
    train(num_ranks, shards, run)
    return run


def test_a_resident_split_gives_what_tars_give(
    scratch: Path, shards: Path, num_ranks: int, from_tars: Path
) -> None:
    """And the same of each image that is evaluated, from memory."""
    run = scratch / f"resident-{num_ranks}"
    train(num_ranks, shards, run, "--data.reader", "resident")
    assert_same_state(run, from_tars)
    with (
        np.load(RunDirectory(run).predictions("val")) as found,
        np.load(RunDirectory(from_tars).predictions("val")) as expected,
    ):
        assert len(found["labels"]) == 7
        for name in ("labels", "topk_classes", "topk_probabilities", "losses"):
            np.testing.assert_array_equal(found[name], expected[name])


def test_a_resident_run_goes_on_in_the_middle_of_an_epoch_from_tars(
    scratch: Path, shards: Path, from_tars: Path, num_ranks: int
) -> None:
    run = scratch / f"resumed-{num_ranks}"
    train(num_ranks, shards, run, "--data.reader", "resident", "--max-steps", 2)
    train(num_ranks, shards, run)
    assert_same_state(run, from_tars)
    assert [row["resumed_from"] for row in rows(run, "run")] == [None, 2]


@pytest.mark.ffcv
def test_a_beton_gives_what_tars_give(
    scratch: Path, shards: Path, num_ranks: int, from_tars: Path, beton: Path
) -> None:
    run = scratch / f"beton-{num_ranks}"
    train(num_ranks, shards, run, "--data.reader", "beton", "--data.beton", beton)
    assert_same_state(run, from_tars)


@pytest.fixture(scope="module")
def beton(scratch: Path, shards: Path, ffcv: FfcvProcess) -> Path:
    return ffcv.write_beton(shards, scratch / "shards.beton")


def test_a_url_gives_what_tars_give(
    scratch: Path, shards: Path, num_ranks: int, from_tars: Path
) -> None:
    """With faults on the way, in a cache that all ranks share."""
    run = scratch / f"remote-{num_ranks}"
    with serving(shards) as server:
        for path in shards.glob("*.tar"):
            server.faults[path.name] = ["drop", "503", "flip"]
        cache = ("--data.cache_dir", scratch / f"cache-{num_ranks}")
        train(num_ranks, server.url, run, "--data.reader", "remote", *cache)
        train_requests = server.requests["train-000000.tar"]
    assert_same_state(run, from_tars)
    assert train_requests == 4, "three faults, and one that all ranks share"


def suggested_bytes(job: Job, before: str = "set --data.cache_bytes to ") -> int:
    """How large a cache must be, by the error of one that was too small."""
    return int(job.errors[0].partition(before)[2].split()[0].replace(",", ""))


def test_shards_of_a_url_pass_through_a_small_cache(scratch: Path) -> None:
    """With shards shuffled, the cache holds a part of them; resumed, the run has the same bits."""
    shards = make_large_shards(scratch / "many", 60, 7, samples_per_shard=3)
    sizes = [path.stat().st_size for path in shards.glob("*.tar")]
    whole, resumed = scratch / "whole", scratch / "through-a-cache"
    order: list[object] = ["--data.shuffle_shards", 2, "--data.prefetch_batches", 1]
    order += ["--global_batch_size", 4, "--evaluation.block_size", 1, "--accumulation_steps", 1]
    train(2, shards, whole, *order)
    with serving(shards) as server:
        cache: list[object] = ["--data.cache_dir", scratch / "small-cache"]
        cache += ["--data.reader", "remote", "--data.cache_bytes"]
        job = train(2, server.url, resumed, *order, *cache, 5 * max(sizes), code=1)
        assert "shards of train are needed at one time" in job.errors[0]
        enough = suggested_bytes(job)
        assert enough < sum(sizes)
        train(2, server.url, resumed, *order, *cache, enough, "--max-steps", 20)
        train(2, server.url, resumed, *order, *cache, enough)
    assert_same_state(resumed, whole)


def test_a_resident_split_comes_from_a_url(scratch: Path, shards_of_three: Path) -> None:
    """Each rank stages its own stretch; evaluation then goes to the URL as well."""
    whole, run = scratch / "resident-whole", scratch / "resident-from-a-url"
    train(2, shards_of_three, whole)
    sizes = [path.stat().st_size for path in shards_of_three.glob("*.tar")]
    with serving(shards_of_three) as server:
        cache: list[object] = ["--data.cache_dir", scratch / "resident-cache"]
        cache += ["--data.reader", "resident", "--data.cache_bytes"]
        job = train(2, server.url, run, *cache, max(sizes), code=1)
        assert "the 2 ranks of a host need " in job.errors[0]
        train(2, server.url, run, *cache, suggested_bytes(job, "need "))
        requests = dict(server.requests)
        evaluating = ["--run-dir", whole, "--shards", server.url]
        evaluating += ["--cache-dir", scratch / "resident-cache"]
        with Job(1, "pipeline.evaluate", evaluating) as evaluation:
            assert evaluation.wait() == [0], evaluation.errors
    assert_same_state(run, whole)
    assert {requests[f"train-{number:06d}.tar"] for number in range(12)} <= {1, 2}


def test_what_a_resident_split_cannot_do_is_reported(scratch: Path, shards: Path) -> None:
    resized = ("--augment.crop_place", "random_resized")
    job = train(1, shards, scratch / "refused", "--data.reader", "resident", *resized, code=1)
    assert "a resident image can be cropped, but not scaled" in job.errors[0]


def test_originals_of_many_sizes_are_trained_on_with_scaled_crops(scratch: Path) -> None:
    """And evaluated on ten views of the middle of each; a resumed run sees the same crops."""
    images = scratch / "originals"
    for split, count in (("train", 6), ("val", 3)):
        for label, name in enumerate(("cat", "dog")):
            folder = images / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                seed = 100 * label + number
                content = jpeg(seed, height=40 + 9 * number, width=90 - 7 * number)
                (folder / f"{split}{number}.jpg").write_bytes(content)
    shards = scratch / "originals-shards"
    assert run_cli("shard", "folder", "--input", images, "--output", shards).returncode == 0
    options: list[object] = ["--augment.crop_place", "random_resized"]
    options += ["--augment.evaluation_pixels", 36, "--global_batch_size", 4, "--epochs", 3]
    options += ["--accumulation_steps", 1, "--evaluation.every_epochs", 1]
    options += ["--evaluation.views", 10]
    whole, resumed, two = (scratch / f"originals-{name}" for name in ("whole", "resumed", "two"))
    train(1, shards, whole, *options)
    train(1, shards, resumed, *options, "--max-steps", 4)
    train(1, shards, resumed, *options)
    assert_same_state(resumed, whole)
    train(2, shards, two, *options)
    for run in (whole, two):
        assert [row["seen"] for row in rows(run, "eval")] == [6, 6, 6]
