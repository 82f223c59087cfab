"""Augmentation against plain NumPy, and its draws as a function of (seed, epoch, sample) only."""

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
from pipeline.data.augment import Draws, Normalizer, apply, draw

CPU = torch.device("cpu")
SHIFT_AND_FLIP = AugmentConfig(shift_pixels=2, flip="random")
MANY = np.arange(60_000)


def random_images(count: int, height: int, width: int) -> torch.Tensor:
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def augment_plainly(
    images: npt.NDArray[np.uint8], draws: Draws, shift_pixels: int
) -> npt.NDArray[np.uint8]:
    """Pad, crop and flip image by image."""
    _, height, width, _ = images.shape
    outputs = []
    for image, row, column, flip in zip(images, draws.rows, draws.columns, draws.flip, strict=True):
        padded = np.pad(image, ((shift_pixels,) * 2, (shift_pixels,) * 2, (0, 0)), mode="reflect")
        crop = padded[row : row + height, column : column + width]
        outputs.append(crop[:, ::-1] if flip else crop)
    return np.array(outputs)


def as_rows(draws: Draws) -> list[tuple[int, int, bool]]:
    return list(zip(draws.rows.tolist(), draws.columns.tolist(), draws.flip.tolist(), strict=True))


@given(
    count=st.integers(1, 5),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    shift_pixels=st.integers(0, 11),
    flip=st.sampled_from(["none", "random", "alternating"]),
    epoch=st.integers(0, 5),
)
def test_apply_is_pad_crop_and_flip(
    count: int,
    height: int,
    width: int,
    shift_pixels: int,
    flip: Literal["none", "random", "alternating"],
    epoch: int,
) -> None:
    shift_pixels = min(shift_pixels, height - 1, width - 1)
    config = AugmentConfig(shift_pixels=shift_pixels, flip=flip)
    images = random_images(count, height, width)
    draws = draw(config, 0, epoch, np.arange(count))
    outputs = apply(images, draws, shift_pixels)
    assert outputs.dtype == torch.uint8
    assert np.array_equal(outputs.numpy(), augment_plainly(images.numpy(), draws, shift_pixels))


def test_apply_shifts_up_to_both_ends_and_leaves_its_input_alone() -> None:
    images = random_images(50, 8, 8)
    before = images.clone()
    draws = Draws(
        rows=np.repeat(np.arange(5), 10),
        columns=np.tile(np.arange(5), 10),
        flip=np.arange(50) % 10 < 5,
    )
    outputs = apply(images, draws, 2)
    assert np.array_equal(outputs.numpy(), augment_plainly(images.numpy(), draws, 2))
    assert torch.equal(images, before)


def test_images_that_are_not_contiguous_are_augmented_alike() -> None:
    images = random_images(6, 9, 8)
    turned = images.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)
    assert not turned.is_contiguous()
    draws = draw(SHIFT_AND_FLIP, 0, 0, np.arange(6))
    assert torch.equal(apply(turned, draws, 2), apply(images, draws, 2))


@pytest.mark.parametrize("shift_pixels", [8, 9])
def test_a_shift_beyond_the_image_is_refused(shift_pixels: int) -> None:
    config = AugmentConfig(shift_pixels=shift_pixels)
    with pytest.raises(ValueError, match=rf"shift_pixels is {shift_pixels};.* which are 8×12"):
        apply(random_images(1, 8, 12), draw(config, 0, 0, np.arange(1)), shift_pixels)


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
    draws = draw(SHIFT_AND_FLIP, 0, 3, MANY)
    choices = (draws.rows * 5 + draws.columns) * 2 + draws.flip
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
    flips = [draw(config, 0, epoch, MANY).flip for epoch in range(4)]
    assert flips[0].mean() == pytest.approx(0.5, abs=0.01)
    assert np.array_equal(flips[1], ~flips[0])
    assert np.array_equal(flips[2], flips[0])
    assert np.array_equal(flips[3], flips[1])


def test_without_augmentation_images_stay_as_they_are() -> None:
    images = random_images(3, 6, 7)
    draws = draw(AugmentConfig(), 0, 0, np.arange(3))
    assert torch.equal(apply(images, draws, 0), images)


@given(
    mean=st.tuples(*[st.floats(0, 255)] * 3),
    std=st.tuples(*[st.floats(0.5, 128)] * 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
)
def test_normalizer_subtracts_and_divides_by_channel(
    mean: tuple[float, ...], std: tuple[float, ...], height: int, width: int
) -> None:
    images = random_images(2, height, width)
    outputs = Normalizer(mean, std, CPU)(images)
    assert outputs.dtype == torch.float32
    assert outputs.shape == (2, 3, height, width)
    exact = (images.numpy().astype(np.float64) - np.array(mean)) / np.array(std)
    # fp32 rounds x·(1/s) and m/s, each up to 255/s
    assert np.allclose(outputs.numpy(), exact.transpose(0, 3, 1, 2), rtol=0, atol=1e-4 / min(std))


def test_normalizer_gives_channels_last_memory() -> None:
    outputs = Normalizer((0.0,) * 3, (1.0,) * 3, CPU)(random_images(2, 5, 4))
    assert outputs.is_contiguous(memory_format=torch.channels_last)
