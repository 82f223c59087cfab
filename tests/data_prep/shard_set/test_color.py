"""The compiled steps from a JPEG's planes to pixels, against libjpeg-turbo's whole decoding."""

from __future__ import annotations

import ctypes
import io
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_prep.shard_set.compiled import is_compiled, library
from data_prep.shard_set.pixels import Pixels, Window
from tests.data_prep.odd_jpegs import components, sampled

pytestmark = pytest.mark.skipif(not is_compiled(), reason="the compiled code was not built")

SAMPLINGS = (
    [(1, 1), (1, 1), (1, 1)],
    [(2, 1), (1, 1), (1, 1)],
    [(1, 2), (1, 1), (1, 1)],
    [(2, 2), (1, 1), (1, 1)],
    [(4, 1), (1, 1), (1, 1)],
    [(1, 4), (1, 1), (1, 1)],
    [(4, 2), (1, 1), (1, 1)],
    [(4, 2), (2, 2), (1, 1)],
    [(2, 2), (1, 2), (2, 1)],
    [(1, 2), (2, 2), (2, 1)],
    [(2, 4), (1, 1), (2, 2)],
)
"""Horizontal and vertical factors of Y, Cb and Cr: with names, and without."""


class _Plane(ctypes.Structure):
    """`Plane` of jpeg.h."""

    _fields_ = (
        ("samples", ctypes.c_void_p),
        ("row_bytes", ctypes.c_size_t),
        *((name, ctypes.c_int) for name in ("top", "left", "height", "width", "down", "across")),
    )


def cut_plane(plane: Pixels, window: Window, across: int, down: int) -> tuple[_Plane, Pixels]:
    """What a window needs of a plane, and nothing beside it."""
    height, width = plane.shape
    top, left = window.top // down, window.left // across
    bottom = (window.top + window.height - 1) // down + 1
    right = (window.left + window.width - 1) // across + 1
    if down == 2:
        top, bottom = max(0, top - 1), min(height, bottom + 1)
    if across == 2:
        left, right = max(0, left - 1), min(width, right + 1)
    taken = plane[top:bottom, left:right].copy()
    return _Plane(taken.ctypes.data, taken.shape[1], top, left, height, width, down, across), taken


def rgb(planes: Sequence[Pixels], samplings: Sequence[tuple[int, int]], window: Window) -> Pixels:
    across, down = (max(factors) for factors in zip(*samplings, strict=True))
    cut = [
        cut_plane(plane, window, across // h, down // v)
        for plane, (h, v) in zip(planes, samplings, strict=True)
    ]
    out = np.full((window.height * window.width * 3 + 64,), 77, np.uint8)
    is_done = library().planes_to_rgb(
        (_Plane * len(cut))(*(plane for plane, _ in cut)),
        len(cut),
        (ctypes.c_int * 4)(*window),
        ctypes.c_void_p(out.ctypes.data),
    )
    assert is_done == 1
    assert (out[-64:] == 77).all()
    return out[:-64].reshape(window.height, window.width, 3)


def decoded(content: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(content)))


@st.composite
def windows(draw: st.DrawFn, longest: int = 100) -> tuple[tuple[int, int], Window]:
    """The size of an image, often a small one, and a window in it, often at a border."""
    sides = st.one_of(st.integers(1, 20), st.integers(1, longest))
    height, width = draw(sides), draw(sides)
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    tall = draw(st.one_of(st.just(height - top), st.integers(1, height - top)))
    wide = draw(st.one_of(st.just(width - left), st.integers(1, width - left)))
    return (height, width), Window(top, left, tall, wide)


@pytest.mark.parametrize("samplings", SAMPLINGS)
@given(case=windows())
def test_pixels_of_planes_are_those_of_libjpeg(
    samplings: Sequence[tuple[int, int]], case: tuple[tuple[int, int], Window]
) -> None:
    (height, width), window = case
    image = np.random.default_rng(height * 100 + width).integers(
        0, 256, (height, width, 3), np.uint8
    )
    planes = [decoded(component) for component in components(image, samplings)]
    whole = decoded(sampled(image, samplings))
    top, left, tall, wide = window
    found = rgb(planes, samplings, window)
    assert np.array_equal(found, whole[top : top + tall, left : left + wide])
