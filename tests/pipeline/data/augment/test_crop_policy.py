"""Crop boxes: inside their images, as often as the rule says, and the same on any partition."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.augment import AugmentConfig
from pipeline.data.augment.crop_policy import (
    CropBoxes,
    CropPolicy,
    evaluation_crop_policy,
    input_size,
    training_crop_policy,
)

MANY = np.arange(60_000)
RESIZED = AugmentConfig(crop_pixels=7, crop_place="random_resized", evaluation_pixels=8)
CROP = AugmentConfig(crop_pixels=224)


def boxes(
    crop_policy: CropPolicy, samples: npt.NDArray[np.int64], size: tuple[int, int], epoch: int = 0
) -> CropBoxes:
    return crop_policy.boxes(samples, epoch, *(np.full(len(samples), side) for side in size))


def as_rows(found: CropBoxes) -> list[tuple[int, ...]]:
    columns = (found.tops, found.lefts, found.heights, found.widths)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def assert_inside(found: CropBoxes, heights: Any, widths: Any) -> None:
    for first, side, most in (
        (found.tops, found.heights, heights),
        (found.lefts, found.widths, widths),
    ):
        assert first.dtype == side.dtype == np.int64
        assert np.all(first >= 0)
        assert np.all(side >= 1)
        assert np.all(first + side <= most)


def test_crops_are_at_all_33_places_of_each_direction_alike() -> None:
    """Offsets 0 to 32 inclusive, as in the code; the paper counts 32."""
    found = boxes(training_crop_policy(CROP, (256, 256), 0), MANY, (256, 256))
    assert_inside(found, 256, 256)
    assert set(found.heights.tolist()) == set(found.widths.tolist()) == {224}
    for places in (found.tops, found.lefts):
        counts = np.bincount(places, minlength=33)
        assert len(counts) == 33
        expected = len(MANY) / 33
        statistic = ((counts - expected) ** 2 / expected).sum()
        assert statistic < 32 + 5 * np.sqrt(2 * 32)


def test_a_crop_of_the_middle_is_always_there() -> None:
    config = AugmentConfig(crop_pixels=227, crop_place="middle")
    found = boxes(training_crop_policy(config, (256, 260), 0), np.arange(4), (256, 260), epoch=5)
    assert as_rows(found) == [(14, 16, 227, 227)] * 4


def test_without_a_crop_the_box_is_the_image() -> None:
    crop_policy = training_crop_policy(AugmentConfig(shift_pixels=2), (9, 12), 0)
    assert crop_policy.output_size == (9, 12)
    assert as_rows(boxes(crop_policy, np.arange(2), (9, 12))) == [(0, 0, 9, 12)] * 2


@pytest.mark.parametrize("min_area", [0.08, 0.5])
def test_resized_crops_have_uniform_areas_and_log_ratios(min_area: float) -> None:
    """In an image so large that nearly all draws fit: the first one is taken."""
    config = AugmentConfig(crop_pixels=224, crop_place="random_resized", crop_min_area=min_area)
    size = (100_000, 100_000)
    found = boxes(training_crop_policy(config, None, 3), MANY, size)
    assert_inside(found, *size)
    shares = found.heights * found.widths / (size[0] * size[1])
    exponents = np.log(found.widths / found.heights) / math.log(4 / 3)
    assert shares.min() >= min_area - 1e-4
    assert np.abs(exponents).max() <= 1 + 1e-4
    small = shares < 0.7  # of these every ratio fits, so none was drawn anew
    assert np.histogram(exponents[small], 4, (-1, 1))[0] / small.sum() == pytest.approx(
        0.25, abs=0.02
    )
    low, high = (shares < (min_area + 0.7) / 2)[small].mean(), 0.5
    assert low == pytest.approx(high, abs=0.02)


@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    min_area=st.floats(0.01, 1),
    epoch=st.integers(0, 9),
)
def test_resized_crops_of_any_image_are_inside_it(
    height: int, width: int, min_area: float, epoch: int
) -> None:
    config = AugmentConfig(crop_pixels=224, crop_place="random_resized", crop_min_area=min_area)
    crop_policy = training_crop_policy(config, None, 0)
    assert crop_policy.output_size == (224, 224)
    assert_inside(boxes(crop_policy, np.arange(40), (height, width), epoch), height, width)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((10, 1000), (0, 493, 10, 13)), ((1000, 10), (493, 0, 13, 10)), ((9, 9), (0, 0, 9, 9))],
)
def test_where_no_draw_fits_the_middle_at_the_nearest_ratio_is_taken(
    size: tuple[int, int], expected: tuple[int, ...]
) -> None:
    config = AugmentConfig(crop_pixels=7, crop_place="random_resized", crop_min_area=1.0)
    found = as_rows(boxes(training_crop_policy(config, None, 0), np.arange(200), size))
    assert expected in found
    if size != (9, 9):  # no rectangle of all its area has an allowed ratio
        assert set(found) == {expected}


@pytest.mark.parametrize(
    "make",
    [
        lambda: training_crop_policy(RESIZED, None, 1),
        lambda: training_crop_policy(CROP, (256,) * 2, 1),
    ],
)
@given(
    samples=st.lists(st.integers(0, 1_300_000), min_size=1, max_size=40), parts=st.integers(1, 8)
)
def test_crops_are_the_same_on_any_partition(
    make: Callable[[], CropPolicy], samples: list[int], parts: int
) -> None:
    crop_policy = make()
    numbers = np.array(samples)
    whole = as_rows(boxes(crop_policy, numbers, (256, 256), 4))
    apart = [
        as_rows(boxes(crop_policy, part, (256, 256), 4)) for part in np.array_split(numbers, parts)
    ]
    assert list(itertools.chain.from_iterable(apart)) == whole


def test_other_seeds_epochs_and_images_have_other_crops() -> None:
    first = as_rows(boxes(training_crop_policy(RESIZED, None, 0), MANY[:1000], (256, 256)))
    for seed, epoch in ((1, 0), (0, 1)):
        other = as_rows(
            boxes(training_crop_policy(RESIZED, None, seed), MANY[:1000], (256, 256), epoch)
        )
        assert sum(a == b for a, b in zip(first, other, strict=True)) < 5
    assert len(set(first)) > 990


def test_evaluation_takes_images_of_one_size_whole_and_the_middle_of_others() -> None:
    whole = evaluation_crop_policy(RESIZED, (256, 260))
    assert whole.output_size == (256, 260)
    assert as_rows(boxes(whole, np.arange(1), (256, 260))) == [(0, 0, 256, 260)]
    middle = evaluation_crop_policy(RESIZED, None)
    assert middle.output_size == (8, 8)
    found = middle.boxes(np.arange(2), 0, np.array([300, 400]), np.array([500, 375]))
    assert as_rows(found) == [(0, 100, 300, 300), (12, 0, 375, 375)]


def test_images_of_many_sizes_need_crops_that_are_scaled() -> None:
    for config in (AugmentConfig(), CROP, AugmentConfig(crop_pixels=8, crop_place="middle")):
        with pytest.raises(ValueError, match=r"differ in size: train with .*random_resized"):
            input_size(config, None)
    assert input_size(RESIZED, None) == (7, 7)
    config = AugmentConfig(crop_pixels=300, crop_place="random_resized")
    with pytest.raises(ValueError, match=r"crop_pixels is 300, more than .*evaluation_pixels 256"):
        input_size(config, None)


@pytest.mark.parametrize("shift_pixels", [8, 9])
def test_a_shift_beyond_the_image_is_refused(shift_pixels: int) -> None:
    config = AugmentConfig(shift_pixels=shift_pixels)
    with pytest.raises(ValueError, match=rf"shift_pixels is {shift_pixels};.* which are 8×12"):
        input_size(config, (8, 12))


@pytest.mark.parametrize("crop_place", ["random", "random_resized"])
def test_a_crop_larger_than_the_images_is_refused(crop_place: Any) -> None:
    config = AugmentConfig(crop_pixels=224, crop_place=crop_place)
    with pytest.raises(ValueError, match=r"crop_pixels is 224, and the images are 256×200: conv"):
        input_size(config, (256, 200))
    assert input_size(config, (256, 224)) == (224, 224)
    assert input_size(AugmentConfig(), (256, 224)) == (256, 224)
