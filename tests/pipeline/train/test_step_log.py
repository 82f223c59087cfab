"""When a loss is that of guessing."""

from __future__ import annotations

import math

import pytest

from pipeline.train.step_log import is_guessing


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_within_half_a_percent_of_equal_odds(num_classes: int) -> None:
    chance = math.log(num_classes)
    assert is_guessing(chance, num_classes)
    assert is_guessing(chance * 1.0049, num_classes)
    assert is_guessing(chance * 0.9951, num_classes)
    assert not is_guessing(chance * 1.0051, num_classes)
    assert not is_guessing(chance * 0.9949, num_classes)


def test_one_class_is_no_guess() -> None:
    assert not is_guessing(0.0, 1)
