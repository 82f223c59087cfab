"""The bare copying loop copies what it should."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.rivals.rounds import PLANES_SHAPE


@pytest.mark.parametrize("planes", [False, True])
def test_windows_are_those_of_the_source(planes: bool) -> None:
    pytest.importorskip("numba")
    from benchmarks.rivals.limit_copy import PIECES, PLANES, copy_windows, draw_starts

    dice = np.random.default_rng(0)
    rows, count = np.array([4, 0, 4, 2]), 4
    images = dice.integers(256, size=(5, 256, 256, 3)).astype(np.uint8)
    if planes:
        images = images.ravel()[: 5 * 384 * 256].reshape(5, 384, 256)
    starts, pieces = draw_starts(dice, count, planes), PLANES if planes else PIECES
    shape = PLANES_SHAPE[1:] if planes else (224, 224, 3)
    batch = np.zeros((count, int(np.prod(shape))), np.uint8)
    copy_windows(images.reshape(5, -1), rows, starts, pieces, batch)
    for row, (start, *of_chroma), found in zip(rows, starts.tolist(), batch, strict=True):
        if not planes:
            top, left = start // 768, start % 768 // 3
            wanted = images[row, top : top + 224, left : left + 224]
            np.testing.assert_array_equal(found, wanted.ravel())
            continue
        top, left = start // 256, start % 256
        window = np.s_[top // 2 : (top + 226) // 2, left // 2 : (left + 226) // 2]
        chroma = [plane[window].ravel() for plane in images[row, 256:].reshape(2, 128, 128)]
        luma = images[row, top : top + 226, left : left + 226].ravel()
        np.testing.assert_array_equal(found, np.concatenate([luma, *chroma]))
        assert len(of_chroma) == 2
