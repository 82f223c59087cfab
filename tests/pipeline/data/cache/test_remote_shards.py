"""Shards handed out as open files: an epoch through a cache that is smaller than the split."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.shard_set.index import read_index
from data_prep.shard_set.manifest import ShardSetError, Split, read_manifest
from pipeline.config.data import DataConfig
from pipeline.config.schema import Config
from pipeline.data.batches.loader import Loader, training_requests
from pipeline.data.cache import cache_directory, remote_shards
from pipeline.data.cache.remote_shards import RemoteShards
from pipeline.data.cache.shard_cache import ShardCache
from pipeline.data.open import open_data
from pipeline.data.order.partition import BatchPlan, ShardShuffle
from pipeline.data.order.shard_needs import (
    ShardNeed,
    check_cache_bytes,
    run_position,
    stretch_needs,
    training_needs,
)
from tests.machine import DEADLINE_SECONDS, wait_until
from tests.pipeline.data.cache.cache_process import content_of, make_config
from tests.pipeline.fake_run import encode, make_images, write_shard_set
from tests.pipeline.worlds import SINGLE, fused

NUM_SHARDS = 8
SHARD_LENGTH = 10
LENGTHS = (SHARD_LENGTH,) * NUM_SHARDS
LABELS = np.arange(NUM_SHARDS * SHARD_LENGTH) % 10
IMAGES = make_images(LABELS)

OpenShards = Callable[..., RemoteShards]


@pytest.fixture(autouse=True)
def _short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_shards, "_LOOK_SECONDS", 0.01)
    # A thread may stand still with a lock that it holds for a glance.
    monkeypatch.setattr(cache_directory, "_GLANCE_SECONDS", DEADLINE_SECONDS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "origin"
    write_shard_set(path, IMAGES, LABELS, ["a"] * 10, shard_length=SHARD_LENGTH)
    return path


@pytest.fixture
def split(folder: Path) -> Split:
    return read_manifest(folder).split("val")


@pytest.fixture
def open_shards(folder: Path, tmp_path: Path) -> Iterator[OpenShards]:
    with contextlib.ExitStack() as opened:

        def make(max_bytes: int | None = None) -> RemoteShards:
            url = f"pipe:echo {{}} >> {tmp_path}/fetched; cat {folder}/{{}}"
            limits = {"fetch_timeout_seconds": DEADLINE_SECONDS, "fetch_attempts": 1}
            cache = ShardCache(make_config(url, tmp_path / "cache", max_bytes, **limits))
            staged = cache.stage_manifest()
            shards = RemoteShards(cache, staged, read_manifest(staged).split("val"))
            return opened.enter_context(contextlib.closing(shards))

        yield make


def held(shards: RemoteShards) -> list[int]:
    """The numbers of the shards that are in use or were staged ahead, and not given up."""
    return sorted({*shards._in_use, *shards._ahead})


def fetched(tmp_path: Path) -> list[int]:
    """The numbers of the shards that were fetched, in order."""
    names = (tmp_path / "fetched").read_text().split()
    return [int(name[4:10]) for name in names if name.endswith(".tar")]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_epochs_pass_through_a_cache_that_is_smaller_than_the_split(
    open_shards: OpenShards,
    folder: Path,
    split: Split,
    tmp_path: Path,
    num_threads: int,
) -> None:
    index = read_index(folder, split)
    plan = BatchPlan(
        num_samples=split.num_samples,
        global_batch_size=7,
        num_replicas=1,
        accumulation_steps=1,
        drop_last=True,
        shuffle=ShardShuffle(split.shard_lengths, 2),
    )
    max_bytes = 5 * max(split.shard_bytes)
    check_cache_bytes(max_bytes, plan, split, split, train_ahead=7, val_ahead=1)
    shards = open_shards(max_bytes)
    end_step = 3 * plan.steps_per_epoch
    seen: list[int] = []
    with ThreadPoolExecutor(num_threads) as pool:

        def read(sample: int) -> None:
            shard, offset, num_bytes, _ = index[sample].tolist()
            with shards.reading(shard) as file:
                content = os.pread(file, num_bytes, offset)
            assert content == encode(IMAGES[sample], "rgb")

        shards.expect(training_needs(plan, split.shard_lengths, 0, 0, end_step))
        for step, (request,) in enumerate(training_requests(plan, 0, 0, end_step)):
            list(pool.map(read, request.samples.tolist()))
            seen += request.samples.tolist()
            shards.passed(run_position(plan, step + 1))
            num_whole = len(list((tmp_path / "cache").glob("*/val-*.tar")))
            assert num_whole * max(split.shard_bytes) <= max_bytes  # they are of one size
    assert len(seen) == 3 * 77
    assert len(fetched(tmp_path)) < 3 * NUM_SHARDS + 3  # and not once for each of 33 steps
    assert held(shards) == []


def test_a_shard_is_given_up_when_its_last_need_has_passed(
    open_shards: OpenShards, tmp_path: Path
) -> None:
    shards = open_shards()
    are_handed_on = threading.Event()

    def needs() -> Iterator[ShardNeed]:
        yield from (ShardNeed(3, 0, 9), ShardNeed(1, 5, 6), ShardNeed(3, 12, 20))
        are_handed_on.set()

    shards.expect(needs())
    assert are_handed_on.wait(DEADLINE_SECONDS)
    wait_until(lambda: held(shards) == [1, 3])
    shards.passed(6)
    assert held(shards) == [1, 3]
    shards.passed(10)
    assert held(shards) == [3]
    shards.passed(20)
    assert held(shards) == [3]
    shards.passed(21)
    assert held(shards) == []
    assert sorted(fetched(tmp_path)) == [1, 3]
    shards.close()


def test_what_is_being_read_is_not_closed(open_shards: OpenShards, folder: Path) -> None:
    shards = open_shards()
    with shards.reading(4) as file:
        shards.passed(1000)
        assert os.pread(file, 512, 0) == (folder / "val-000004.tar").read_bytes()[:512]
    shards.passed(1000)
    assert held(shards) == []
    with shards.reading(4) as file:
        assert os.pread(file, 512, 0) == (folder / "val-000004.tar").read_bytes()[:512]
    shards.close()


def test_no_more_than_the_split_is_ahead(open_shards: OpenShards, tmp_path: Path) -> None:
    """However much room there is: the needs of later epochs are computed when it is time."""
    asked: list[int] = []

    def needs() -> Iterator[ShardNeed]:
        for number in range(10 * NUM_SHARDS):
            asked.append(number)
            first = number * SHARD_LENGTH
            yield ShardNeed(number % NUM_SHARDS, first, first + SHARD_LENGTH - 1)

    shards = open_shards()
    shards.expect(needs())
    wait_until(lambda: len(held(shards)) == NUM_SHARDS)
    wait_until(lambda: len(asked) == NUM_SHARDS + 1)
    assert sorted(fetched(tmp_path)) == list(range(NUM_SHARDS))
    shards.passed(3 * SHARD_LENGTH)
    wait_until(lambda: len(asked) == NUM_SHARDS + 4)


def test_needs_that_are_over_are_not_staged(open_shards: OpenShards, tmp_path: Path) -> None:
    gate = threading.Event()

    def needs() -> Iterator[ShardNeed]:
        assert gate.wait(DEADLINE_SECONDS)
        yield from (ShardNeed(0, 0, 4), ShardNeed(1, 5, 9))

    shards = open_shards()
    shards.expect(needs())
    shards.passed(5)
    gate.set()
    wait_until(lambda: held(shards) == [1])
    assert fetched(tmp_path) == [1]


def test_a_new_list_takes_the_place_of_the_old_one(
    open_shards: OpenShards, split: Split, tmp_path: Path
) -> None:
    """As every evaluation brings one; positions begin anew."""
    shards = open_shards()
    for _ in range(2):
        shards.expect(stretch_needs(split.shard_lengths, range(split.num_samples)))
        wait_until(lambda: len(held(shards)) == NUM_SHARDS)
        for number in range(NUM_SHARDS):
            with shards.reading(number):
                pass
            shards.passed((number + 1) * SHARD_LENGTH)
            assert len(held(shards)) == NUM_SHARDS - number - 1
    assert sorted(fetched(tmp_path)) == list(range(NUM_SHARDS))


def test_a_list_that_was_replaced_stages_no_more(open_shards: OpenShards, tmp_path: Path) -> None:
    gate = threading.Event()

    def old_needs() -> Iterator[ShardNeed]:
        yield ShardNeed(0, 0, 9)
        assert gate.wait(DEADLINE_SECONDS)
        yield ShardNeed(1, 0, 9)

    shards = open_shards()
    shards.expect(old_needs())
    wait_until(lambda: held(shards) == [0])
    shards.expect([ShardNeed(2, 0, 9)])
    gate.set()
    wait_until(lambda: held(shards) == [0, 2])
    shards.passed(1)
    assert held(shards) == [2]
    assert sorted(fetched(tmp_path)) == [0, 2]


def test_shards_are_closed_whoever_still_waits(open_shards: OpenShards) -> None:
    shards = open_shards()
    shards.expect(ShardNeed(number % 2, number, number) for number in range(9 * NUM_SHARDS))
    wait_until(lambda: held(shards) == [0, 1])
    closing = threading.Thread(target=shards.close, daemon=True)
    closing.start()
    closing.join(DEADLINE_SECONDS)
    assert not closing.is_alive()
    assert held(shards) == []


def test_a_loader_is_closed_though_its_shard_never_comes(folder: Path, tmp_path: Path) -> None:
    """What a stalled server owes does not hold up a stop."""
    waits = tmp_path / "waits"
    data = DataConfig(
        shards=f"pipe:case {{}} in *.tar) touch {waits}; sleep 1000;; esac; cat {folder}/{{}}",
        reader="remote",
        cache_dir=str(tmp_path / "cache"),
        fetch_timeout_seconds=1000,
    )
    with contextlib.ExitStack() as resources:
        opened = open_data(Config(data=data), torch.device("cpu"), resources)
        val = opened.open_evaluation("val", 1, opened.normalizer())
        loader = resources.enter_context(val.open_blocks(fused(SINGLE)))
        assert isinstance(loader, Loader)
        wait_until(waits.exists)
        closing = threading.Thread(target=loader.close, daemon=True)
        closing.start()
        closing.join(DEADLINE_SECONDS)
        is_closed = not closing.is_alive()
        assert val.opened.files is not None
        val.opened.files.give_up()
    assert is_closed


def test_damage_in_the_cache_is_mended_by_deleting_it(folder: Path, tmp_path: Path) -> None:
    data = DataConfig(shards=folder.as_uri(), reader="remote", cache_dir=str(tmp_path / "cache"))
    with contextlib.ExitStack() as resources:
        opened = open_data(Config(data=data), torch.device("cpu"), resources)
        shards = opened.shards
        assert shards.cache is not None
        split = shards.manifest.split("val")
        path = shards.folder / split.filenames[0]
        os.close(shards.cache.open_file(path, content_of(split, 0), threading.Event()))
        content = bytearray(path.read_bytes())
        content[int(read_index(folder, read_manifest(folder).split("val"))[0]["offset"])] ^= 1
        path.write_bytes(content)
        reader = opened.open_evaluation("val", 1, opened.normalizer()).opened.reader
        images = np.empty((4, *reader.image_shape), np.uint8)
        with pytest.raises(ShardSetError, match=rf"{path}.*; delete it from the cache"):
            reader.read(np.arange(4), 0, images)
