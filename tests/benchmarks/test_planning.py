"""The failures that a plan is compared with are those that it expects."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.planning import distances


@given(number=st.integers(1, 30), mean=st.floats(0.1, 100.0), seed=st.integers(0, 99))
def test_distances_have_the_mean_and_the_quantiles_of_the_exponential_law(
    number: int, mean: float, seed: int
) -> None:
    found = [*itertools.islice(distances(number, mean, random.Random(seed)), number)]
    assert math.fsum(found) == pytest.approx(number * mean)
    shares = [1 - math.exp(-distance / mean) for distance in sorted(found)]
    for place, share in enumerate(shares):
        assert place / number <= share <= (place + 1) / number
    again = itertools.islice(distances(number, mean, random.Random(seed)), 2 * number)
    assert [*again] == 2 * found


def test_few_failures_are_never_far_from_as_many_as_expected() -> None:
    for seed in range(20):
        found = itertools.islice(distances(10, 1.0, random.Random(seed)), 10)
        for number, total in enumerate(itertools.accumulate(found), 1):
            assert abs(total - number) < 2, "two failures more or less"
