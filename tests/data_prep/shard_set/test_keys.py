"""Keys of samples."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.shard_set.keys import KEY_PATTERN, make_keys

NAMES = st.lists(st.text(alphabet="ab_-./ é\n", min_size=1, max_size=100), max_size=40)


@pytest.mark.slow
@given(NAMES)
def test_keys_are_valid_and_unique(names: list[str]) -> None:
    keys = make_keys([f"x{name}" for name in names])
    assert all(KEY_PATTERN.fullmatch(key) for key in keys)
    assert len(set(keys)) == len(names)
    assert all(len(f"{key}.npy") <= 100 for key in keys)


@given(NAMES, st.randoms(use_true_random=False))
def test_keys_do_not_depend_on_the_order_of_names(names: list[str], rng: random.Random) -> None:
    names = sorted({f"x{name}" for name in names})
    shuffled = rng.sample(names, len(names))
    keys = dict(zip(names, make_keys(names), strict=True))
    assert keys == dict(zip(shuffled, make_keys(shuffled), strict=True))


def test_keys_tell_where_a_sample_comes_from() -> None:
    assert make_keys(["cat/0001.jpg", "n01440764/n01440764_10026.JPEG"]) == [
        "cat_0001",
        "n01440764_n01440764_10026",
    ]


def test_equal_keys_are_numbered() -> None:
    names = ["a.b.jpg", "a b.jpg", "a_b.png", "a_b-2.jpg"]
    assert make_keys(names) == ["a_b-2", "a_b", "a_b-3", "a_b-2-2"]
