"""The assignment of samples to shards."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.convert.assignment import ShardName, Task, assign
from data_prep.shard_set.keys import KEY_PATTERN

KEYS = st.lists(st.from_regex(KEY_PATTERN, fullmatch=True), unique=True, max_size=60)


def rows_by_shard(keys: list[str], *, seed: int, samples_per_shard: int) -> list[list[int]]:
    shards = assign(keys, seed=seed, samples_per_shard=samples_per_shard)
    return [shard.tolist() for shard in shards]


@given(KEYS, st.integers(0, 5), st.integers(1, 9))
def test_every_sample_is_in_one_shard(keys: list[str], seed: int, length: int) -> None:
    shards = rows_by_shard(keys, seed=seed, samples_per_shard=length)
    assert sorted(row for shard in shards for row in shard) == list(range(len(keys)))
    assert all(len(shard) == length for shard in shards[:-1])
    assert all(shards)


@pytest.mark.slow
@given(KEYS, st.integers(0, 5), st.integers(1, 9), st.randoms(use_true_random=False))
def test_assignment_does_not_depend_on_the_order_of_keys(
    keys: list[str], seed: int, length: int, rng: random.Random
) -> None:
    shuffled = rng.sample(keys, len(keys))

    def by_key(keys: list[str]) -> list[list[str]]:
        shards = assign(keys, seed=seed, samples_per_shard=length)
        return [[keys[row] for row in shard] for shard in shards]

    assert by_key(keys) == by_key(shuffled)


def test_the_seed_shuffles() -> None:
    keys = [f"{number:04d}" for number in range(1000)]
    orders = [rows_by_shard(keys, seed=seed, samples_per_shard=1000)[0] for seed in (0, 1)]
    assert orders[0] != orders[1]
    for order in orders:  # of uncorrelated orders of 1000, one in a thousand is beyond 0.1
        assert abs(sum((row - 499.5) * (place - 499.5) for place, row in enumerate(order))) < 9e6


def test_the_order_is_fixed_for_good() -> None:
    keys = ["cat_0", "cat_1", "dog_0", "dog_1"]
    assert rows_by_shard(keys, seed=0, samples_per_shard=3) == [[0, 3, 1], [2]]


@given(st.integers(0, 40), st.integers(1, 50))
def test_every_shard_has_one_task(num_shards: int, num_tasks: int) -> None:
    shards = [ShardName("train", number) for number in range(num_shards)]
    picked = [list(Task(number, num_tasks).pick(shards)) for number in range(num_tasks)]
    assert sorted(shard.number for part in picked for shard in part) == list(range(num_shards))
    assert max(map(len, picked)) - min(map(len, picked)) <= 1
