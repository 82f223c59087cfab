"""Crops of images in memory: on the CPU, and the kernel for GPUs, interpreted and compiled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_prep.shard_set.manifest import Statistics
from pipeline.config.augment import AugmentConfig
from pipeline.data.augment.crops import CropWindows, take_crops
from pipeline.data.augment.normalize import Normalizer
from pipeline.data.augment.preprocess import Augmenter
from tests.pipeline.kernels import compile_for_h100, needs_gpu, run_interpreted

triton = pytest.importorskip("triton")

UNIT = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
STATISTICS = Statistics(
    num_images=1, mean=(1, 1, 1), std=(1, 1, 1), pca_stds=(1, 1, 1), pca_vectors=UNIT
)
RANDOM = np.random.default_rng(5)
IMAGES = torch.from_numpy(RANDOM.integers(0, 256, (6, 20, 24, 3), dtype=np.uint8))
CROP_WINDOWS = CropWindows(
    rows=np.array([5, 0, 0, 3]),
    tops=np.array([0, 4, 2, 1]),
    lefts=np.array([8, 0, 3, 2]),
    size=(16, 16),
)


def test_crops_are_windows_of_the_chosen_images() -> None:
    found = take_crops(IMAGES, CROP_WINDOWS)
    for crop, row, top, left in zip(
        found, CROP_WINDOWS.rows, CROP_WINDOWS.tops, CROP_WINDOWS.lefts, strict=True
    ):
        assert torch.equal(crop, IMAGES[row, top : top + 16, left : left + 16])
    assert take_crops(IMAGES, None) is IMAGES


@given(flips=st.lists(st.booleans(), min_size=6, max_size=6))
def test_chosen_crops_are_mirrored_and_the_images_stay_as_they_are(flips: list[bool]) -> None:
    before = IMAGES.clone()
    for images in (IMAGES, IMAGES.flip(2), IMAGES[:, :, :1]):
        crops = take_crops(images, None, np.array(flips))
        for crop, image, is_flipped in zip(crops, images, flips, strict=True):
            assert torch.equal(crop, image.flip(1) if is_flipped else image)
    assert torch.equal(IMAGES, before)


@pytest.mark.slow
def test_interpreted_the_kernel_does_what_plain_torch_does() -> None:
    run_interpreted("tests.pipeline.data.augment.interpreted_crops")


@pytest.mark.slow
@pytest.mark.parametrize("is_planar", [False, True])
@pytest.mark.parametrize("normalizes", [False, True])
def test_the_kernel_compiles_for_an_h100(normalizes: bool, is_planar: bool) -> None:
    from pipeline.data.augment import crops_cuda

    names = ("rows", "tops", "lefts")
    pointers = dict.fromkeys(names, "*i64") | dict.fromkeys(("shift", "scale", "colors"), "*fp32")
    pointers |= {"images": "*u8", "flips": "*u8", "out": "*fp32" if normalizes else "*u8"}
    pointers["inverse_divisor"] = "fp32"
    constants = {"NORMALIZES": normalizes, "SHIFT_IS_IMAGE": True, "BLOCK": 1024}
    constants["IS_PLANAR"] = is_planar
    assert compile_for_h100(crops_cuda._crop_kernel, pointers, constants).asm["cubin"]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("color_noise", [0.0, 0.1])
@pytest.mark.parametrize("images", [IMAGES, IMAGES[:, :, :20, 0].reshape(4, 30, 20)])
def test_on_a_gpu_augmentation_is_that_of_the_cpu(images: torch.Tensor, color_noise: float) -> None:
    config = AugmentConfig(crop_pixels=16, flip="random", color_noise=color_noise)
    mean, std = RANDOM.uniform(90, 140, (16, 16, 3)), np.array([60.0, 50.0, 40.0])
    found, expected = (
        Augmenter(config, 0, STATISTICS, Normalizer(mean, std, torch.device(name)))(
            images.to(name), np.arange(4), 1, CROP_WINDOWS
        ).cpu()
        for name in ("cuda", "cpu")
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
