"""The compiled steps from a JPEG's planes to pixels, against libjpeg-turbo's whole decoding."""

from __future__ import annotations

import ctypes
import io
import random
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep.shard_set.pixels import Pixels, Window
from tests.data_prep.odd_jpegs import components, sampled

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


def call(steps: ctypes.CDLL, planes: list[_Plane], window: Window, out: Pixels) -> bool:
    done: int = steps.planes_to_rgb(
        (_Plane * len(planes))(*planes),
        len(planes),
        (ctypes.c_int * 4)(*window),
        ctypes.c_void_p(out.ctypes.data),
    )
    return done == 1


def rgb(
    steps: ctypes.CDLL,
    planes: Sequence[Pixels],
    samplings: Sequence[tuple[int, int]],
    window: Window,
) -> Pixels:
    across, down = (max(factors) for factors in zip(*samplings, strict=True))
    cut = [
        cut_plane(plane, window, across // h, down // v)
        for plane, (h, v) in zip(planes, samplings, strict=True)
    ]
    out = np.full(window.height * window.width * 3 + 64, 77, np.uint8)
    assert call(steps, [plane for plane, _ in cut], window, out)
    assert (out[-64:] == 77).all()  # nothing behind the pixels
    return out[:-64].reshape(window.height, window.width, 3)


def decoded(content: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(content)))


def windows_of(height: int, width: int, rng: random.Random) -> Iterator[Window]:
    """At every border, at every corner, at none, and single pixels."""
    for _ in range(5):
        ys, xs = (sorted(rng.choices(range(size), k=2)) for size in (height, width))
        for top, bottom in {(0, height - 1), (0, ys[1]), (ys[0], height - 1), (ys[0], ys[1])}:
            left, right = rng.choice([(0, width - 1), (0, xs[1]), (xs[0], width - 1), xs])
            yield Window(top, left, bottom - top + 1, right - left + 1)
    yield Window(rng.randrange(height), rng.randrange(width), 1, 1)


SIDES = st.one_of(st.integers(1, 20), st.integers(1, 120))


@pytest.mark.parametrize("samplings", SAMPLINGS, ids=str)
@given(height=SIDES, width=SIDES)
@settings(max_examples=30)
def test_pixels_of_planes_are_those_of_libjpeg(
    steps: ctypes.CDLL, samplings: Sequence[tuple[int, int]], height: int, width: int
) -> None:
    rng = np.random.default_rng(height * 200 + width)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    planes = [decoded(component) for component in components(image, samplings)]
    whole = decoded(sampled(image, samplings))
    for window in windows_of(height, width, random.Random(width)):
        top, left, tall, wide = window
        found = rgb(steps, planes, samplings, window)
        assert np.array_equal(found, whole[top : top + tall, left : left + wide]), window


@pytest.mark.parametrize("width", [1, 31, 32, 33, 64, 100])
def test_gray_is_given_three_times(steps: ctypes.CDLL, width: int) -> None:
    plane = np.random.default_rng(width).integers(0, 256, (9, width), np.uint8)
    for window in windows_of(9, width, random.Random(width)):
        top, left, tall, wide = window
        expected = plane[top : top + tall, left : left + wide, np.newaxis].repeat(3, axis=2)
        assert np.array_equal(rgb(steps, [plane], [(1, 1)], window), expected)


def test_every_colour_is_converted_as_by_libjpeg(steps: ctypes.CDLL) -> None:
    """All pairs of Cb and Cr, by the numbers of jdcolor.c."""
    rng = np.random.default_rng(0)
    cb, cr = (plane.astype(np.uint8) for plane in np.mgrid[:256, :256])
    luma = rng.integers(0, 256, (256, 256), np.uint8)
    planes = luma, cb, cr
    found = rgb(steps, planes, [(1, 1)] * 3, Window(0, 0, 256, 256))
    values = [plane.astype(np.int64) for plane in planes]
    y, b, r = values[0], values[1] - 128, values[2] - 128
    exact = [
        y + ((91881 * r + 32768) >> 16),
        y + ((-22554 * b - 46802 * r + 32768) >> 16),
        y + ((116130 * b + 32768) >> 16),
    ]
    assert np.array_equal(found, np.clip(np.stack(exact, axis=2), 0, 255))


@pytest.mark.parametrize(("count", "across", "down"), [(3, 3, 1), (3, 1, 3), (3, 0, 1), (2, 1, 1)])
def test_other_samplings_are_declined(
    steps: ctypes.CDLL, count: int, across: int, down: int
) -> None:
    window = Window(0, 0, 6, 6)
    plane, _samples = cut_plane(np.zeros((6, 6), np.uint8), window, 1, 1)
    plane.across, plane.down = across, down
    out = np.empty((6, 6, 3), np.uint8)
    assert not call(steps, [plane] * count, window, out)
