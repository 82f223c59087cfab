"""The augmentation that rivals are given is the published one."""

from __future__ import annotations

import random
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.rivals.crops import crop, draw_box, draw_resized_box
from benchmarks.rivals.spdl_loader import describe
from tests.data_prep.raw_data import make_pixels

sides = st.integers(1, 3000)


@given(width=sides, height=sides, seed=st.integers(0, 1000))
def test_a_box_lies_in_the_image_and_is_not_empty(width: int, height: int, seed: int) -> None:
    random.seed(seed)
    left, top, right, bottom = draw_resized_box(width, height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@given(seed=st.integers(0, 10_000))
def test_a_box_of_a_usual_image_has_an_allowed_area_and_ratio(seed: int) -> None:
    random.seed(seed)
    left, top, right, bottom = draw_resized_box(500, 375)
    columns, rows = right - left, bottom - top
    assert (columns - 1) * (rows - 1) <= 500 * 375
    assert (columns + 1) * (rows + 1) >= 0.08 * 500 * 375
    assert 3 / 4 * (rows - 1) <= columns + 1
    assert columns - 1 <= 4 / 3 * (rows + 1)


def test_areas_and_ratios_are_spread_as_they_should() -> None:
    random.seed(0)
    boxes = [draw_resized_box(1000, 1000) for _ in range(4000)]
    sizes = [(right - left, bottom - top) for left, top, right, bottom in boxes]
    wide = [columns > rows for columns, rows in sizes]
    shares = [columns * rows / 1e6 for columns, rows in sizes]
    assert statistics.fmean(wide) == pytest.approx(0.5, abs=0.03)
    assert min(shares) == pytest.approx(0.08, abs=0.01)
    # Uniform from 0.08 to 1, but that the largest fit into the image less often.
    assert 0.45 < statistics.fmean(shares) < 0.54


def test_an_image_too_long_for_any_box_gives_its_middle() -> None:
    random.seed(0)
    assert draw_resized_box(3000, 30) == (1480, 0, 1520, 30)
    assert draw_resized_box(30, 3000) == (0, 1480, 30, 1520)


def test_boxes_of_a_fixed_size_are_at_any_place() -> None:
    random.seed(0)
    boxes = {draw_box(226, 225, "jpeg256") for _ in range(100)}
    assert boxes == {(left, top, left + 224, top + 224) for left in range(3) for top in range(2)}


def test_filters_of_ffmpeg_take_the_box_and_flip_half_of_the_times() -> None:
    flips = 0
    for seed in range(200):
        random.seed(seed)
        left, top, right, bottom = draw_box(500, 375, "original")
        random.seed(seed)
        cropped, scaled, colour, *flipped = describe(500, 375, "original").split(",")
        assert cropped == f"crop={right - left}:{bottom - top}:{left}:{top}:exact=1"
        assert (scaled, colour) == ("scale=224:224:flags=bilinear", "format=rgb24")
        flips += flipped == ["hflip"]
    assert 70 < flips < 130


def test_a_crop_is_a_part_of_the_image_and_flipped_half_of_the_times() -> None:
    random.seed(0)
    pixels = make_pixels(height=226, width=227)
    parts = {
        (top, left): pixels[top : top + 224, left : left + 224]
        for top in range(3)
        for left in range(4)
    }
    flips, places = 0, set()
    for _ in range(200):
        found = crop(pixels)
        (place,) = (
            (place, is_flipped)
            for place, part in parts.items()
            for is_flipped, wanted in ((False, part), (True, part[:, ::-1]))
            if np.array_equal(found, wanted)
        )
        places.add(place[0])
        flips += place[1]
    assert places == set(parts)
    assert 70 < flips < 130
