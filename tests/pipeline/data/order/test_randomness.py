"""Draws: known values, uniformity, and independence of streams, epochs and seeds."""

from __future__ import annotations

import itertools
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.order.randomness import (
    Stream,
    dropout_keys,
    random_below,
    random_bits,
    random_normals,
)

MODULUS = 1 << 64
MANY = np.arange(100_000)


def mix(state: int) -> int:
    """SplitMix64's step in Python's unbounded integers."""
    state = (state + 0x9E3779B97F4A7C15) % MODULUS
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % MODULUS
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % MODULUS
    return state ^ (state >> 31)


def chi_squared(counts: npt.NDArray[np.int64]) -> float:
    """Distance from equal counts, in standard deviations of what chance gives."""
    expected = counts.mean()
    freedom = len(counts) - 1
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float((statistic - freedom) / np.sqrt(2 * freedom))


def correlation(first: npt.NDArray[np.uint64], second: npt.NDArray[np.uint64]) -> float:
    return float(np.corrcoef(first.astype(np.float64), second.astype(np.float64))[0, 1])


def test_the_mixer_is_splitmix64() -> None:
    """Its first outputs from seed 1234567, as published with the Java and C versions."""
    state, outputs = 1234567, []
    for _ in range(3):
        outputs.append(mix(state))
        state += 0x9E3779B97F4A7C15
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(
    seed=st.integers(0, (1 << 63) - 1),
    stream=st.sampled_from(Stream),
    epoch=st.integers(0, 1 << 40),
    sample=st.integers(0, 1 << 40),
)
def test_bits_are_the_mixer_applied_to_each_coordinate(
    seed: int, stream: Stream, epoch: int, sample: int
) -> None:
    expected = mix(mix(mix(mix(seed) ^ stream) ^ epoch) ^ sample)
    assert int(random_bits(seed, stream, epoch, np.array(sample))) == expected


def test_a_draw_does_not_depend_on_the_others() -> None:
    together = random_bits(3, Stream.FLIP, 5, MANY.reshape(100, -1))
    assert together.shape == (100, 1000)
    alone = [int(random_bits(3, Stream.FLIP, 5, np.array([sample]))[0]) for sample in (0, 17, 99)]
    assert alone == [int(together[0, sample]) for sample in (0, 17, 99)]


def test_every_bit_is_set_half_of_the_time() -> None:
    bits = random_bits(0, Stream.ORDER, 0, MANY)
    shares = [float((bits >> np.uint64(bit) & np.uint64(1)).mean()) for bit in range(64)]
    assert np.allclose(shares, 0.5, atol=5 * 0.5 / np.sqrt(len(MANY)))


@pytest.mark.parametrize("bound", [1, 2, 3, 5, 9, 32, 1000])
def test_integers_below_a_bound_are_uniform(bound: int) -> None:
    draws = random_below(bound, 7, Stream.SHIFT_DOWN, 1, MANY)
    counts = np.bincount(draws, minlength=bound)
    assert len(counts) == bound
    assert draws.min() >= 0
    assert bound == 1 or abs(chi_squared(counts)) < 5


def test_streams_epochs_and_seeds_are_independent() -> None:
    few = MANY[:10_000]
    draws = [
        random_bits(seed, stream, epoch, few)
        for seed, stream, epoch in itertools.product((0, 1, 2), Stream, (0, 1, 2))
    ]
    assert len(np.unique(draws)) == len(draws) * len(few)
    correlations = np.corrcoef(np.array(draws, np.float64))
    assert np.abs(correlations - np.eye(len(draws))).max() < 5 / np.sqrt(len(few))


def test_neighbouring_samples_are_independent() -> None:
    bits = random_bits(0, Stream.FLIP, 0, MANY)
    for distance in (1, 2, 64):
        assert abs(correlation(bits[distance:], bits[:-distance])) < 5 / np.sqrt(len(MANY))


def test_the_draws_of_a_run_never_change() -> None:
    """A resumed run must go on with the draws it began with, whatever version resumes it."""
    draws = random_below(100, 1, Stream.SHIFT_RIGHT, 2, np.arange(6))
    assert draws.tolist() == [32, 6, 51, 75, 82, 80]


def test_every_sample_and_epoch_has_a_dropout_key_of_its_own() -> None:
    keys = np.concatenate([dropout_keys(seed, epoch, MANY) for seed in (0, 1) for epoch in (0, 1)])
    assert keys.dtype == np.int64
    assert len(np.unique(keys)) == len(keys)
    assert dropout_keys(0, 0, MANY[7:9]).tolist() == dropout_keys(0, 0, MANY)[7:9].tolist()


def test_normals_are_normal_and_independent() -> None:
    found = random_normals(3, 0, Stream.COLOR, 0, MANY)
    assert found.shape == (len(MANY), 3)
    limit = 5 / np.sqrt(len(MANY))
    assert np.abs(found.mean(axis=0)).max() < limit
    assert np.abs(np.cov(found.T) - np.eye(3)).max() < np.sqrt(2) * limit
    normal = NormalDist()
    for bound in (-2, -1, 0, 0.5, 1.5):
        shares = (found < bound).mean(axis=0)
        assert np.abs(shares - normal.cdf(bound)).max() < limit
    assert np.array_equal(random_normals(3, 0, Stream.COLOR, 0, MANY[5:6]), found[5:6])
