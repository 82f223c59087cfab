"""What the network gets to see, against NumPy in float64 image by image."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_prep.shard_set.files import sha256_of
from data_prep.shard_set.index import read_mean_image
from data_prep.shard_set.manifest import Manifest, ShardSetError, read_manifest
from pipeline.config.augment import AugmentConfig, ComponentsOfColor
from pipeline.data.augment.normalize import Normalizer, build_normalizer, constancy
from pipeline.data.augment.preprocess import (
    ORIGINAL,
    Augmenter,
    ColorComponents,
    Viewer,
    color_components,
    draw_color_shifts,
)
from tests.pipeline.fake_run import make_images, write_shard_set

CPU = torch.device("cpu")
MANY = np.arange(60_000)
ONES = np.ones(3)
RATIO_OF_2012 = 0.1


def random_images(count: int, height: int, width: int) -> torch.Tensor:
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(0, 256, (count, height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("preprocess") / "shards"
    labels = np.arange(12) % 3
    write_shard_set(path, make_images(labels), labels, ["a", "b", "c"])
    return path


@pytest.fixture
def manifest(shards: Path) -> Manifest:
    """With a mean image, which the shard set's own has none of."""
    path = shards / "train.mean.npy"
    np.save(path, np.random.default_rng(3).uniform(90, 140, (16, 16, 3)).astype(np.float32))
    plain = read_manifest(shards)
    statistics = dataclasses.replace(
        plain.statistics, mean_image_filename=path.name, mean_image_sha256=sha256_of(path)
    )
    return dataclasses.replace(plain, statistics=statistics)


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
    outputs = Normalizer(np.array(mean), np.array(std), CPU)(images)
    assert outputs.dtype == torch.float32
    assert outputs.shape == (2, 3, height, width)
    exact = (images.numpy().astype(np.float64) - np.array(mean)) / np.array(std)
    # fp32 rounds x·(1/s) and m/s, each up to 255/s
    assert np.allclose(outputs.numpy(), exact.transpose(0, 3, 1, 2), rtol=0, atol=1e-4 / min(std))


@pytest.mark.parametrize("dust", [0.0, 1e-7, 0.09])
def test_a_constant_channel_is_named_and_divided_by_one(manifest: Manifest, dust: float) -> None:
    """Whatever the rounding of its deviation, and whether a few pixels are one level off."""
    statistics = dataclasses.replace(
        manifest.statistics, mean=(7.0, 9.0, 8.0), std=(dust, 3.0, dust)
    )
    config = AugmentConfig(normalize="mean_std")
    images = random_images(2, 4, 4)
    outputs = build_normalizer(config, statistics, None, CPU)(images).numpy()
    exact = (images.numpy() - np.array([7.0, 9.0, 8.0])) / np.array([1.0, 3.0, 1.0])
    np.testing.assert_allclose(outputs, exact.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-4)
    assert constancy(config, statistics) == (
        f"constant in all training images: red (deviation {dust:.2g}) and blue (deviation "
        f"{dust:.2g}); augment.normalize mean_std divides by 1 there"
    )
    assert constancy(AugmentConfig(normalize="none"), statistics) is None
    assert constancy(config, dataclasses.replace(statistics, std=(0.1, 3.0, 5.0))) is None


def test_normalizer_gives_channels_last_memory() -> None:
    outputs = Normalizer(np.zeros(3), np.ones(3), CPU)(random_images(2, 5, 4))
    assert outputs.is_contiguous(memory_format=torch.channels_last)


def test_a_mean_image_and_colour_shifts_are_per_pixel_and_per_image() -> None:
    """In grey levels, whatever the deviation is that pixels are divided by."""
    images, mean = random_images(4, 5, 6), np.random.default_rng(1).uniform(0, 255, (5, 6, 3))
    std, shifts = np.array([60.0, 50.0, 40.0]), np.random.default_rng(2).normal(0, 10, (4, 3))
    found = Normalizer(mean, std, CPU)(
        images, color_shifts=torch.from_numpy(shifts).float(), divisor=1.1
    )
    exact = (images.numpy() - mean + shifts[:, None, None, :]) / std / 1.1
    np.testing.assert_allclose(found.numpy(), exact.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-4)


def test_the_mean_image_s_middle_is_subtracted(shards: Path, manifest: Manifest) -> None:
    filename = manifest.statistics.mean_image_filename
    assert filename is not None
    mean = np.load(shards / filename)
    height, width, _ = mean.shape
    config = AugmentConfig(crop_pixels=8, normalize="mean_image")
    normalizer = build_normalizer(config, manifest.statistics, mean, CPU)
    images = random_images(6, 8, 8)
    found = Augmenter(config, 0, manifest.statistics, normalizer)(images, np.arange(6), 0).numpy()
    top, left = (height - 8) // 2, (width - 8) // 2
    middle = mean[top : top + 8, left : left + 8].astype(np.float64)
    for image, output in zip(images.numpy(), found, strict=True):
        exact = image - middle
        np.testing.assert_allclose(output, exact.transpose(2, 0, 1), rtol=1e-5, atol=1e-4)


def test_a_mean_image_that_is_missing_damaged_or_impossible_is_reported(
    shards: Path, manifest: Manifest
) -> None:
    def sentence(**changes: Any) -> str:
        statistics = dataclasses.replace(manifest.statistics, **changes)
        with pytest.raises(ShardSetError) as error:
            read_mean_image(shards, statistics)
        return str(error.value)

    assert "differ in size: convert it with --size N" in sentence(mean_image_filename=None)
    assert "its sha256 is not the one in" in sentence(mean_image_sha256="0" * 64)
    assert "nowhere.npy: missing" in sentence(mean_image_filename="nowhere.npy")


def test_the_original_components_are_orthonormal_and_imply_the_known_deviations() -> None:
    vectors, stds = np.array(ORIGINAL.vectors), np.array(ORIGINAL.stds)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-4)
    per_channel = np.sqrt(((vectors * stds) ** 2).sum(axis=1))
    np.testing.assert_allclose(per_channel, [74.0, 72.0, 77.0], atol=0.05)


@pytest.mark.parametrize("source", ["original", "shards"])
def test_colour_shifts_have_the_components_covariance(
    manifest: Manifest, source: ComponentsOfColor
) -> None:
    components = color_components(source, manifest.statistics)
    shifts = draw_color_shifts(components, RATIO_OF_2012, 0, 0, MANY)
    vectors, stds = np.array(components.vectors), np.array(components.stds)
    exact = (vectors * (RATIO_OF_2012 * stds) ** 2) @ vectors.T
    np.testing.assert_allclose(np.cov(shifts.T), exact, atol=0.03 * exact.max())
    along = shifts @ vectors / (RATIO_OF_2012 * stds)
    np.testing.assert_allclose(along.std(axis=0), 1, atol=0.02)


def test_a_colour_shift_is_one_an_image_and_epoch() -> None:
    components = ColorComponents((1.0, 2.0, 3.0), ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    whole = draw_color_shifts(components, 0.1, 0, 0, np.arange(10))
    np.testing.assert_array_equal(
        draw_color_shifts(components, 0.1, 0, 0, np.array([7, 2])), whole[[7, 2]]
    )
    assert not np.isclose(whole, draw_color_shifts(components, 0.1, 0, 1, np.arange(10))).any()


def test_colour_noise_and_its_division_end_together(manifest: Manifest) -> None:
    config = AugmentConfig(normalize="none", color_noise=0.1, color_noise_until_epoch=3)
    normalizer = build_normalizer(config, manifest.statistics, None, CPU)
    augmenter, samples = Augmenter(config, 0, manifest.statistics, normalizer), np.arange(5)
    images = random_images(5, 4, 4)
    plain = images.numpy().astype(np.float64).transpose(0, 3, 1, 2)
    for epoch in (2, 3):
        found = augmenter(images, samples, epoch).numpy()
        exact = plain
        if epoch < 3:
            shifts = draw_color_shifts(ORIGINAL, 0.1, 0, epoch, samples)
            exact = (plain + shifts[:, :, None, None]) / 1.1
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-4)


def views_of(images: npt.NDArray[np.uint8], size: int) -> list[npt.NDArray[np.uint8]]:
    """Middle and corners, each with its mirror image."""
    _, height, width, _ = images.shape
    bottom, right = height - size, width - size
    places = [(bottom // 2, right // 2), (0, 0), (0, right), (bottom, 0), (bottom, right)]
    views = [images[:, top : top + size, left : left + size] for top, left in places]
    return [view for one in views for view in (one, one[:, :, ::-1])]


def test_ten_views_are_corners_middle_and_their_mirror_images() -> None:
    images = random_images(3, 12, 10)
    normalizer = Normalizer(np.zeros(3), np.ones(3), CPU)
    viewer = Viewer(AugmentConfig(crop_pixels=7), 10, (12, 10), normalizer)
    found = [view.numpy() for view in viewer(images)]
    exact = [view.transpose(0, 3, 1, 2) for view in views_of(images.numpy(), 7)]
    assert len(found) == 10
    for one, other in zip(found, exact, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("crop_pixels", "size"), [(None, (9, 9)), (9, (9, 9)), (9, (9, 12))])
def test_ten_views_of_images_without_a_margin_are_refused(
    crop_pixels: int | None, size: tuple[int, int]
) -> None:
    config, normalizer = AugmentConfig(crop_pixels=crop_pixels), Normalizer(ONES, ONES, CPU)
    with pytest.raises(ValueError, match=r"ten views need images larger .* they are 9×"):
        Viewer(config, 10, size, normalizer)
    Viewer(config, 1, size, normalizer)


def test_one_view_is_the_middle_or_the_whole() -> None:
    images = random_images(3, 12, 10)
    normalizer = Normalizer(np.zeros(3), np.ones(3), CPU)
    (middle,) = Viewer(AugmentConfig(crop_pixels=7), 1, (12, 10), normalizer)(images)
    np.testing.assert_array_equal(
        middle.numpy(), views_of(images.numpy(), 7)[0].transpose(0, 3, 1, 2)
    )
    (whole,) = Viewer(AugmentConfig(), 1, (12, 10), normalizer)(images)
    np.testing.assert_array_equal(whole.numpy(), images.numpy().transpose(0, 3, 1, 2))
