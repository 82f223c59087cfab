"""The bare copying loop copies what it should."""

from __future__ import annotations

import numpy as np
import pytest


def test_crops_are_those_of_the_source() -> None:
    pytest.importorskip("numba")
    from benchmarks.rivals.limit_copy import copy_crops

    dice = np.random.default_rng(0)
    source = dice.integers(256, size=(5, 256, 256, 3)).astype(np.uint8)
    rows = np.array([4, 0, 4, 2])
    places = np.array([[0, 0], [32, 32], [7, 32], [32, 1]])
    batch = np.zeros((4, 224, 672), np.uint8)
    copy_crops(source.reshape(5, 256, 768), rows, places, batch)
    for row, (top, left), image in zip(rows, places, batch, strict=True):
        wanted = source[row, top : top + 224, left : left + 224]
        np.testing.assert_array_equal(image.reshape(224, 224, 3), wanted)
