"""Shifts and flips against plain NumPy; their draws are a function of (seed, epoch, sample)."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.augment import AugmentConfig
from pipeline.data.augment.crops import Flags
from pipeline.data.augment.shifts import Shifts, draw_flips, draw_shifts, shift_and_flip

SHIFT_AND_FLIP = AugmentConfig(shift_pixels=2, flip="random")
MANY = np.arange(60_000)


def random_images(count: int, height: int, width: int) -> torch.Tensor:
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def shift_and_flip_plainly(
    images: npt.NDArray[np.uint8], shifts: Shifts, flips: Flags
) -> npt.NDArray[np.uint8]:
    """Pad with the mirrored image, cut and flip, one by one."""
    _, height, width, _ = images.shape
    outputs = []
    for image, down, right, is_flipped in zip(
        images, shifts.down, shifts.right, flips, strict=True
    ):
        margin = max(abs(down), abs(right))
        padded = np.pad(image, ((margin,) * 2, (margin,) * 2, (0, 0)), mode="reflect")
        top, left = margin - down, margin - right
        moved = padded[top : top + height, left : left + width]
        outputs.append(moved[:, ::-1] if is_flipped else moved)
    return np.array(outputs)


def draw(
    config: AugmentConfig, seed: int, epoch: int, samples: npt.NDArray[np.int64]
) -> tuple[Shifts, Flags]:
    return draw_shifts(config, seed, epoch, samples), draw_flips(config, seed, epoch, samples)


def as_rows(drawn: tuple[Shifts, Flags]) -> list[tuple[int, int, bool]]:
    shifts, flips = drawn
    columns = (shifts.down, shifts.right, flips)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.slow
@given(
    count=st.integers(1, 5),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    shift_pixels=st.integers(0, 11),
    flips=st.sampled_from(["none", "random", "alternating"]),
    epoch=st.integers(0, 5),
)
def test_shift_and_flip_is_pad_crop_and_flip(
    count: int,
    height: int,
    width: int,
    shift_pixels: int,
    flips: Literal["none", "random", "alternating"],
    epoch: int,
) -> None:
    shift_pixels = min(shift_pixels, height - 1, width - 1)
    config = AugmentConfig(shift_pixels=shift_pixels, flip=flips)
    images = random_images(count, height, width)
    drawn = draw(config, 0, epoch, np.arange(count))
    outputs = shift_and_flip(images, *drawn)
    assert outputs.dtype == torch.uint8
    assert np.array_equal(outputs.numpy(), shift_and_flip_plainly(images.numpy(), *drawn))


def test_shifts_reach_both_ends_and_leave_their_input_alone() -> None:
    images = random_images(50, 8, 8)
    before = images.clone()
    shifts = Shifts(down=np.repeat(np.arange(5), 10) - 2, right=np.tile(np.arange(5), 10) - 2)
    flips = np.arange(50) % 10 < 5
    outputs = shift_and_flip(images, shifts, flips)
    assert np.array_equal(outputs.numpy(), shift_and_flip_plainly(images.numpy(), shifts, flips))
    assert torch.equal(images, before)


def test_images_that_are_not_contiguous_are_moved_alike() -> None:
    images = random_images(6, 8, 9)
    turned = images.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)
    assert not turned.is_contiguous()
    drawn = draw(SHIFT_AND_FLIP, 0, 0, np.arange(6))
    assert torch.equal(shift_and_flip(turned, *drawn), shift_and_flip(images, *drawn))


@pytest.mark.slow
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
    shifts, flips = draw(SHIFT_AND_FLIP, 0, 3, MANY)
    choices = ((shifts.down + 2) * 5 + shifts.right + 2) * 2 + flips
    counts = np.bincount(choices, minlength=50)
    assert len(counts) == 50
    expected = len(MANY) / 50
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < 49 + 5 * np.sqrt(2 * 49)  # chi-squared with 49 degrees of freedom


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "epoch"), [(1, 0), (0, 1), (1, 1)])
def test_other_seeds_and_epochs_draw_anew(seed: int, epoch: int) -> None:
    first = np.array(as_rows(draw(SHIFT_AND_FLIP, 0, 0, MANY)))
    second = np.array(as_rows(draw(SHIFT_AND_FLIP, seed, epoch, MANY)))
    agreement = np.all(first == second, axis=1).mean()
    assert agreement == pytest.approx(1 / 50, abs=5 * np.sqrt(1 / 50 / len(MANY)))


def test_alternating_flips_each_image_in_every_second_epoch() -> None:
    config = AugmentConfig(flip="alternating")
    flips = [draw_flips(config, 0, epoch, MANY) for epoch in range(4)]
    assert flips[0].mean() == pytest.approx(0.5, abs=0.01)
    assert np.array_equal(flips[1], ~flips[0])
    assert np.array_equal(flips[2], flips[0])
    assert np.array_equal(flips[3], flips[1])


def test_without_augmentation_images_stay_as_they_are() -> None:
    images = random_images(3, 8, 9)
    drawn = draw(AugmentConfig(), 0, 0, np.arange(3))
    assert torch.equal(shift_and_flip(images, *drawn), images)
    assert not drawn[1].any()
