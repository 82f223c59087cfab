"""Windows against plain NumPy, and their draws as a function of (seed, epoch, sample) only."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import AugmentConfig
from pipeline.data.augment import Windows, cut, draw_windows, input_size

SHIFT_AND_FLIP = AugmentConfig(shift_pixels=2, flip="random")
MANY = np.arange(60_000)


def random_images(count: int, height: int, width: int) -> torch.Tensor:
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def augment_plainly(
    images: npt.NDArray[np.uint8], windows: Windows, margin: int
) -> npt.NDArray[np.uint8]:
    """Pad by `margin`, cut and flip image by image."""
    outputs = []
    for image, top, left, flip in zip(
        images, windows.tops + margin, windows.lefts + margin, windows.flips, strict=True
    ):
        padded = np.pad(image, ((margin,) * 2, (margin,) * 2, (0, 0)), mode="reflect")
        window = padded[top : top + windows.height, left : left + windows.width]
        outputs.append(window[:, ::-1] if flip else window)
    return np.array(outputs)


def draw(config: AugmentConfig, seed: int, epoch: int, samples: npt.NDArray[np.int64]) -> Windows:
    return draw_windows(config, (8, 9), seed, epoch, samples)


def as_rows(windows: Windows) -> list[tuple[int, int, bool]]:
    columns = (windows.tops, windows.lefts, windows.flips)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@given(
    count=st.integers(1, 5),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    shift_pixels=st.integers(0, 11),
    crop_pixels=st.none() | st.integers(1, 12),
    flip=st.sampled_from(["none", "random", "alternating"]),
    epoch=st.integers(0, 5),
)
def test_cut_is_pad_crop_and_flip(
    count: int,
    height: int,
    width: int,
    shift_pixels: int,
    crop_pixels: int | None,
    flip: Literal["none", "random", "alternating"],
    epoch: int,
) -> None:
    smallest = min(height, width)
    if crop_pixels is not None:
        shift_pixels, crop_pixels = 0, min(crop_pixels, smallest)
    shift_pixels = min(shift_pixels, smallest - 1)
    config = AugmentConfig(shift_pixels=shift_pixels, crop_pixels=crop_pixels, flip=flip)
    images = random_images(count, height, width)
    windows = draw_windows(config, (height, width), 0, epoch, np.arange(count))
    outputs = cut(images, windows)
    assert outputs.dtype == torch.uint8
    assert outputs.shape == (count, crop_pixels or height, crop_pixels or width, 3)
    assert np.array_equal(outputs.numpy(), augment_plainly(images.numpy(), windows, shift_pixels))


def test_cut_reaches_both_ends_and_leaves_its_input_alone() -> None:
    images = random_images(50, 8, 8)
    before = images.clone()
    windows = Windows(
        height=8,
        width=8,
        tops=np.repeat(np.arange(5), 10) - 2,
        lefts=np.tile(np.arange(5), 10) - 2,
        flips=np.arange(50) % 10 < 5,
    )
    outputs = cut(images, windows)
    assert np.array_equal(outputs.numpy(), augment_plainly(images.numpy(), windows, 2))
    assert torch.equal(images, before)


def test_images_that_are_not_contiguous_are_cut_alike() -> None:
    images = random_images(6, 8, 9)
    turned = images.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)
    assert not turned.is_contiguous()
    windows = draw(SHIFT_AND_FLIP, 0, 0, np.arange(6))
    assert torch.equal(cut(turned, windows), cut(images, windows))


@pytest.mark.parametrize("shift_pixels", [8, 9])
def test_a_shift_beyond_the_image_is_refused(shift_pixels: int) -> None:
    config = AugmentConfig(shift_pixels=shift_pixels)
    with pytest.raises(ValueError, match=rf"shift_pixels is {shift_pixels};.* which are 8×12"):
        input_size(config, (8, 12))


def test_a_crop_larger_than_the_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"crop_pixels is 224, and the images are 256×200: conv"):
        input_size(AugmentConfig(crop_pixels=224), (256, 200))
    assert input_size(AugmentConfig(crop_pixels=224), (256, 224)) == (224, 224)
    assert input_size(AugmentConfig(), (256, 224)) == (256, 224)


def test_crops_are_at_all_33_places_of_each_direction_alike() -> None:
    """Offsets 0 to 32 inclusive, as in the code; the paper counts 32."""
    config = AugmentConfig(crop_pixels=224, flip="random")
    windows = draw_windows(config, (256, 256), 0, 0, MANY)
    for places in (windows.tops, windows.lefts):
        counts = np.bincount(places, minlength=33)
        assert len(counts) == 33
        expected = len(MANY) / 33
        statistic = ((counts - expected) ** 2 / expected).sum()
        assert statistic < 32 + 5 * np.sqrt(2 * 32)
    assert windows.flips.mean() == pytest.approx(0.5, abs=0.01)


def test_a_crop_of_the_middle_is_always_there() -> None:
    config = AugmentConfig(crop_pixels=227, crop_place="middle")
    windows = draw_windows(config, (256, 260), 0, 5, np.arange(4))
    assert as_rows(windows) == [(14, 16, False)] * 4


@given(
    samples=st.lists(st.integers(0, 1_300_000), min_size=1, max_size=64),
    num_ranks=st.integers(1, 8),
    seed=st.integers(0, 1 << 40),
    epoch=st.integers(0, 1000),
)
def test_draws_are_the_same_on_any_partition(
    samples: list[int], num_ranks: int, seed: int, epoch: int
) -> None:
    whole = as_rows(draw(SHIFT_AND_FLIP, seed, epoch, np.array(samples)))
    parts = np.array_split(np.array(samples), num_ranks)
    apart = [as_rows(draw(SHIFT_AND_FLIP, seed, epoch, part)) for part in parts]
    assert list(itertools.chain.from_iterable(apart)) == whole
    backwards = as_rows(draw(SHIFT_AND_FLIP, seed, epoch, np.array(samples[::-1])))
    assert backwards[::-1] == whole


def test_draws_are_uniform_and_independent_of_each_other() -> None:
    windows = draw(SHIFT_AND_FLIP, 0, 3, MANY)
    choices = ((windows.tops + 2) * 5 + windows.lefts + 2) * 2 + windows.flips
    counts = np.bincount(choices, minlength=50)
    assert len(counts) == 50
    expected = len(MANY) / 50
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < 49 + 5 * np.sqrt(2 * 49)  # chi-squared with 49 degrees of freedom


@pytest.mark.parametrize(("seed", "epoch"), [(1, 0), (0, 1), (1, 1)])
def test_other_seeds_and_epochs_draw_anew(seed: int, epoch: int) -> None:
    first = np.array(as_rows(draw(SHIFT_AND_FLIP, 0, 0, MANY)))
    second = np.array(as_rows(draw(SHIFT_AND_FLIP, seed, epoch, MANY)))
    agreement = np.all(first == second, axis=1).mean()
    assert agreement == pytest.approx(1 / 50, abs=5 * np.sqrt(1 / 50 / len(MANY)))


def test_alternating_flips_each_image_in_every_second_epoch() -> None:
    config = AugmentConfig(flip="alternating")
    flips = [draw(config, 0, epoch, MANY).flips for epoch in range(4)]
    assert flips[0].mean() == pytest.approx(0.5, abs=0.01)
    assert np.array_equal(flips[1], ~flips[0])
    assert np.array_equal(flips[2], flips[0])
    assert np.array_equal(flips[3], flips[1])


def test_without_augmentation_images_stay_as_they_are() -> None:
    images = random_images(3, 8, 9)
    assert torch.equal(cut(images, draw(AugmentConfig(), 0, 0, np.arange(3))), images)
