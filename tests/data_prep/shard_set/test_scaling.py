"""BILINEAR by 16-bit products: how far from Pillow's and from the exact values."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_prep.shard_set.pixels import BILINEAR, Pixels, Window, scale_window
from data_prep.shard_set.scaling import Resampling, scale_pixels
from tests.real_data import imagenet_jpegs

Exact = npt.NDArray[np.float64]

FAR = [  # height, width, and what they become
    *((1, 1, 224, 224), (8000, 3, 224, 224), (3, 8000, 224, 224), (1, 22, 224, 224)),
    *((6720, 22, 224, 224), (22, 6720, 224, 224), (660, 661, 22, 23), (3000, 2990, 60, 60)),
    *((23, 22, 22, 23), (100, 22, 100, 1), (1, 64, 1, 3)),
]
sizes = st.integers(0, 8 * 64 - 1).map(lambda place: round(2 ** (place / 64)))  # 1 to 254


def by_pillow(pixels: Pixels, size: tuple[int, int], resampling: Resampling) -> Pixels:
    """First to the height and then to the width."""
    taller = Image.fromarray(pixels).resize((pixels.shape[1], size[0]), resampling)
    return np.asarray(taller.resize(size[::-1], resampling))


def exactly(pixels: Pixels, size: tuple[int, int]) -> Exact:
    """By a triangle as wide as the scale, in float64."""
    values = pixels.astype(np.float64)
    for side in size:
        in_size = len(values)
        places = (np.arange(side)[:, None] + 0.5) * in_size / side - np.arange(in_size) - 0.5
        triangle = np.maximum(1 - np.abs(places) / max(1, in_size / side), 0)
        weights = triangle / triangle.sum(1, keepdims=True)
        values = np.tensordot(weights, values, 1).swapaxes(0, 1)
    return values


def by_us(pixels: Pixels, size: tuple[int, int], resampling: Resampling) -> Pixels:
    """By the compiled code, if it is there, which must agree with Python."""
    out, in_python = np.empty((2, *size, 3), np.uint8)
    scale_window(pixels, Window(0, 0, *pixels.shape[:2]), out, resampling)
    scale_pixels(pixels, in_python, resampling)
    np.testing.assert_array_equal(out, in_python)
    return out


def check(height: int, width: int, size: tuple[int, int], seed: int) -> None:
    """Noise of all values and of the outermost two, and a single colour."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    for pixels in (noise, np.where(noise < 128, np.uint8(0), np.uint8(255))):
        found = by_us(pixels, size, BILINEAR).astype(int)
        assert np.abs(found - by_pillow(pixels, size, BILINEAR)).max() <= 1
        is_by_pillow = width < 22 or max(height / size[0], width / size[1]) > 30
        bound = 1.01 if is_by_pillow else 0.5 + 0.47
        assert np.abs(found - exactly(pixels, size)).max() < bound
    plain = np.broadcast_to(noise[0, 0], noise.shape).copy()
    assert (by_us(plain, size, BILINEAR) == noise[0, 0]).all()


@given(sizes, sizes, sizes, sizes, st.integers(0, 99))
def test_values_differ_from_those_of_pillow_by_one_at_most(
    height: int, width: int, rows: int, columns: int, seed: int
) -> None:
    check(height, width, (rows, columns), seed)


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width", "rows", "columns"), FAR)
def test_so_they_do_however_far_it_is(height: int, width: int, rows: int, columns: int) -> None:
    check(height, width, (rows, columns), seed=0)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(50, 21, (30, 30)), (661, 40, (22, 30)), (40, 661, (30, 22))],
)
def test_narrow_windows_and_long_sums_have_the_bits_of_pillow(
    height: int, width: int, size: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    found = by_us(pixels, size, BILINEAR)
    np.testing.assert_array_equal(found, by_pillow(pixels, size, BILINEAR))


def test_white_stays_white_and_black_black() -> None:
    for width in range(22, 120):
        for value in (0, 1, 254, 255):
            pixels = np.full((5, width, 3), value, np.uint8)
            assert (by_us(pixels, (3, 50), BILINEAR) == value).all()


def test_errors_are_smaller_than_those_of_pillow() -> None:
    """Of random windows of real images, against the exact values: the documented figures."""
    rng = random.Random(0)
    ours, pillows = [], []
    paths = imagenet_jpegs()[::40]
    assert len(paths) == 25
    for path in paths:
        whole = simplejpeg.decode_jpeg(path.read_bytes(), strict=False)
        height, width = (rng.randint(side // 4, side) for side in whole.shape[:2])
        pixels = np.ascontiguousarray(whole[:height, :width])
        exact = exactly(pixels, (224, 224))
        ours.append(by_us(pixels, (224, 224), BILINEAR) - exact)
        pillows.append(by_pillow(pixels, (224, 224), BILINEAR) - exact)
    rounding = 0.25
    assert np.abs(ours).mean() < rounding + 0.01 < np.abs(pillows).mean()
    assert np.abs(np.mean(ours)) < 0.02
    assert 0.1 < (np.round(np.subtract(ours, pillows)) != 0).mean() < 0.25
