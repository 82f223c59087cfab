"""Colour statistics against NumPy in float64."""

from __future__ import annotations

import math
import statistics

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.convert.statistics import (
    PixelSums,
    colour_covariance,
    colour_mean,
    colour_std,
    mean_image,
    principal_components,
)
from data_prep.shard_set.pixels import Pixels


def random_images(
    seed: int, sizes: list[tuple[int, int]], low: int = 0, high: int = 256
) -> list[Pixels]:
    random = np.random.default_rng(seed)
    return [random.integers(low, high, (*size, 3), np.uint8) for size in sizes]


def add_all(images: list[Pixels]) -> PixelSums:
    sums = PixelSums()
    for image in images:
        sums.add(image)
    return sums


def all_pixels(images: list[Pixels]) -> npt.NDArray[np.float64]:
    return np.concatenate([image.reshape(-1, 3) for image in images]).astype(np.float64)


SIZES = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=8)


@given(SIZES, st.integers(0, 99))
def test_statistics_are_those_of_all_pixels(sizes: list[tuple[int, int]], seed: int) -> None:
    images = random_images(seed, sizes)
    sums, pixels = add_all(images), all_pixels(images)
    assert sums.num_pixels == len(pixels)
    np.testing.assert_allclose(colour_mean(sums), pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(colour_std(sums), pixels.std(axis=0), rtol=1e-9, atol=1e-9)
    covariance = np.cov(pixels.T, bias=True)
    np.testing.assert_allclose(colour_covariance(sums), covariance, rtol=1e-9, atol=1e-8)


@given(SIZES, st.integers(0, 99))
def test_components_rebuild_the_covariance(sizes: list[tuple[int, int]], seed: int) -> None:
    sums = add_all(random_images(seed, sizes))
    stds, vectors = principal_components(sums)
    assert np.all(np.diff(stds) >= 0)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-7)
    rebuilt = vectors @ np.diag(stds**2) @ vectors.T
    np.testing.assert_allclose(rebuilt, colour_covariance(sums), atol=1e-4)
    assert np.all(vectors[np.abs(vectors).argmax(axis=0), range(3)] > 0)


@given(SIZES, st.integers(0, 99), st.randoms(use_true_random=False), st.integers(1, 4))
def test_sums_do_not_depend_on_who_counts(
    sizes: list[tuple[int, int]], seed: int, rng: object, num_parts: int
) -> None:
    images = random_images(seed, sizes)
    whole, merged = add_all(images), PixelSums()
    rng.shuffle(images)  # type: ignore[attr-defined]
    for part in range(num_parts):
        merged.merge(add_all(images[part::num_parts]))
    assert merged.num_images == whole.num_images
    np.testing.assert_array_equal(merged.sums, whole.sums)
    np.testing.assert_array_equal(merged.products, whole.products)
    if len(set(sizes)) == 1:
        np.testing.assert_array_equal(merged.image_sum, whole.image_sum)


def test_large_image_is_counted_whole() -> None:
    images = random_images(3, [(301, 217)])
    sums, pixels = add_all(images), images[0].reshape(-1, 3).astype(np.int64)
    np.testing.assert_array_equal(sums.sums, pixels.sum(axis=0))
    np.testing.assert_array_equal(sums.products, pixels.T @ pixels)


def test_mean_image() -> None:
    images = random_images(1, [(5, 7)] * 9)
    found = mean_image(add_all(images))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.mean(images, axis=0).astype(np.float32))


def test_no_digit_is_lost_in_nearly_flat_bright_images() -> None:
    images = random_images(2, [(64, 64)] * 4, low=254)
    channels = np.concatenate([image.reshape(-1, 3) for image in images]).T.tolist()
    expected = [math.sqrt(statistics.pvariance(channel)) for channel in channels]  # in fractions
    np.testing.assert_allclose(colour_std(add_all(images)), expected, rtol=1e-15)


@pytest.mark.parametrize("value", [0, 255])
def test_flat_images_have_no_spread(value: int) -> None:
    sums = add_all([np.full((3, 3, 3), value, np.uint8)])
    assert colour_mean(sums) == (value, value, value)
    assert colour_std(sums) == (0, 0, 0)
    assert principal_components(sums)[0].tolist() == [0, 0, 0]
