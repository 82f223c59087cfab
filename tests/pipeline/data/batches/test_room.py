"""When there is room for resident images, and what is said when there is none."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_prep.shard_set.memory import host_free_bytes
from pipeline.config.recipes import recipe_config
from pipeline.data.batches import room
from pipeline.data.batches.room import (
    ResidentImages,
    check_room,
    exchange_bytes,
    free_bytes,
)
from pipeline.data.order.partition import BatchPlan, ShardShuffle
from pipeline.optim.memory import bytes_of_training
from pipeline.ranks.world import World
from tests.pipeline.worlds import SINGLE, fused, world_of_equals

GIGABYTE = 10**9
RESERVE = 256 << 20
"""On a CPU."""


def images(split: str, num_samples: int, *shape: int) -> ResidentImages:
    return ResidentImages(split=split, num_samples=num_samples, image_shape=shape)


PLANES = [images("train", 1_281_167, 384, 256), images("val", 50_000, 384, 256)]
PIXELS = [images("train", 1_281_167, 256, 256, 3), images("val", 50_000, 256, 256, 3)]


def on_gpus(count: int) -> World:
    return dataclasses.replace(world_of_equals(count), device=torch.device("cuda"))


def fits(splits: list[ResidentImages], needs: dict[str, int], world: World, free: int) -> bool:
    try:
        check_room(splits, needs, world, free)
    except ValueError:
        return False
    return True


def test_what_does_not_fit_is_refused_with_the_arithmetic() -> None:
    needs = {"weights": 2 * GIGABYTE, "nothing": 0}
    with pytest.raises(ValueError, match="do not fit") as error:
        check_room(PIXELS, needs, world_of_equals(8), 34 * GIGABYTE)
    assert str(error.value) == (
        "the resident images do not fit in memory: 1,281,167 train images of 256×256×3 bytes are "
        "251.9 GB and 50,000 val images of 256×256×3 bytes are 9.8 GB, 32.7 GB for each of 8 "
        "ranks; a rank needs 2.0 GB for weights, 0.3 GB for oneDNN and gaps between blocks "
        "besides, and cpu has 34.0 GB free for each: use 9 ranks or more, a smaller "
        "--global_batch_size or more --accumulation_steps, a shard set of --encoding yuv420, "
        "which is half as large, a smaller --size, or another --data.reader"
    )
    check_room(PIXELS, needs, world_of_equals(9), 34 * GIGABYTE)


def test_planes_are_not_told_to_become_planes() -> None:
    with pytest.raises(ValueError, match="do not fit") as error:
        check_room(PLANES, {}, SINGLE, GIGABYTE)
    assert "yuv420" not in str(error.value)


def test_a_step_that_does_not_fit_alone_is_not_helped_by_ranks() -> None:
    with pytest.raises(ValueError, match="use a smaller --global_batch_size"):
        check_room(PLANES, {"a pass": 3 * GIGABYTE}, SINGLE, 2 * GIGABYTE)


@given(
    num_samples=st.integers(1, 10_000),
    side=st.integers(1, 300),
    num_ranks=st.integers(1, 9),
    need=st.integers(0, GIGABYTE),
    spare=st.integers(-3, 3),
)
def test_it_fits_to_the_byte(
    num_samples: int, side: int, num_ranks: int, need: int, spare: int
) -> None:
    splits = [images("train", num_samples, side, side, 3), images("val", 7, side, side, 3)]
    most = (-(-num_samples // num_ranks) + -(-7 // num_ranks)) * 3 * side**2
    free = most + need + RESERVE + spare
    assert fits(splits, {"a pass": need}, world_of_equals(num_ranks), free) == (spare >= 0)


@given(
    num_samples=st.integers(1, 10_000),
    side=st.integers(1, 300),
    num_ranks=st.integers(1, 9),
    room=st.integers(1, 100_000_000),
)
def test_the_number_of_ranks_that_is_named_is_the_least(
    num_samples: int, side: int, num_ranks: int, room: int
) -> None:
    splits = [images("train", num_samples, side, side, 3)]
    free = room + RESERVE
    try:
        check_room(splits, {}, world_of_equals(num_ranks), free)
    except ValueError as error:
        named = re.search("use (\\d+) ranks or more", str(error))
        enough = 3 * side**2 <= room
        assert (named is not None) == enough
        if named is not None:
            assert fits(splits, {}, world_of_equals(int(named[1])), free)
            assert not fits(splits, {}, world_of_equals(int(named[1]) - 1), free)


def test_imagenet_fits_one_gpu_as_planes() -> None:
    """256×256 in an H200, with 149 GB free, or in two GPUs of 80 GB; batch 1024 in bf16."""
    assert [split.share(1) / GIGABYTE for split in PLANES] == pytest.approx([125.9, 4.9], abs=0.05)
    config = dataclasses.replace(recipe_config("alexnet_fast"), precision="bf16")
    for num_gpus, free in ((1, 149 * GIGABYTE), (2, 80 * GIGABYTE)):
        batch_size = config.global_batch_size // num_gpus
        needs = bytes_of_training(config, 1000, batch_size, SINGLE, fused(SINGLE))
        assert fits(PLANES, needs, on_gpus(num_gpus), free)
        assert not fits(PIXELS, needs, on_gpus(num_gpus), free)


def make_plan(shuffle: ShardShuffle | None) -> BatchPlan:
    return BatchPlan(
        num_samples=96,
        global_batch_size=24,
        num_replicas=3,
        accumulation_steps=2,
        drop_last=True,
        shuffle=shuffle,
    )


def test_crops_travel_only_between_ranks() -> None:
    """A rank has two batches of 4 that it got, and what it sent for them."""
    crop, shuffled = 5 * 6 * 3, ShardShuffle((48, 48), 1)
    assert exchange_bytes(make_plan(None), (5, 6), SINGLE) == 0
    assert exchange_bytes(make_plan(None), (5, 6), world_of_equals(3)) == 2 * (4 + 8) * crop
    assert exchange_bytes(make_plan(shuffled), (5, 6), world_of_equals(3)) == 2 * (4 + 12) * crop


def test_the_ranks_of_a_host_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert host_free_bytes() > 1 << 20
    monkeypatch.setattr(room, "host_free_bytes", lambda: 100 * GIGABYTE)
    assert free_bytes(world_of_equals(4)) == 25 * GIGABYTE
