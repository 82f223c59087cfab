"""Crops of images in memory: on the CPU, and the kernel for GPUs, interpreted and compiled."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.augment import AugmentConfig
from pipeline.data.augment.crops import take_crops, take_crops_plain
from pipeline.data.augment.normalize import Normalizer
from pipeline.data.augment.preprocess import Augmenter
from tests.pipeline.gpu_checks import CROP_WINDOWS, IMAGES, PLANES, STATISTICS
from tests.pipeline.kernels import compile_for, for_each_gpu, run_interpreted

triton = pytest.importorskip("triton")

RANDOM = np.random.default_rng(5)
CPU = torch.device("cpu")


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
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "u8"])
@for_each_gpu
def test_the_kernel_compiles(capability: int, dtype: str, is_planar: bool) -> None:
    """A pixel is loaded once, and its numbers are rounded once before the cast."""
    from pipeline.data.augment import crops_cuda

    floats = ("shift", "scale", "color_shifts")
    pointers = {"images": "*u8", "windows": "*i32", "out": f"*{dtype}"}
    constants: dict[str, object] = {"IS_PLANAR": is_planar, "ROWS": 4, "COLUMNS": 256}
    constants["SHIFT_IS_IMAGE"] = normalizes = dtype != "u8"
    if normalizes:
        pointers |= dict.fromkeys(floats, "*fp32")
    else:
        constants |= dict.fromkeys(floats)
    compiled = compile_for(capability, crops_cuda._crop_kernel, pointers, constants)
    text = compiled.asm["ptx"]
    pixels_of_lane = 4 * 256 // (32 * compiled.metadata.num_warps)
    assert len(re.findall(r"ld\.global\S*\.b8 ", text)) == 3 * pixels_of_lane
    assert text.count("fma.rn.f32") == (3 * pixels_of_lane if normalizes else 0)
    assert ("cvt.rn.bf16" in text) == (dtype == "bf16")
    assert ("cvt.rn.f16" in text) == (dtype == "fp16")


@given(flips=st.lists(st.booleans(), min_size=4, max_size=4))
@pytest.mark.parametrize("images", [IMAGES, PLANES], ids=["pixels", "planes"])
def test_without_triton_a_gpu_takes_the_same_crops(images: torch.Tensor, flips: list[bool]) -> None:
    flags = np.array(flips)
    found = take_crops_plain(images, CROP_WINDOWS, flags)
    assert torch.equal(found, take_crops(images, CROP_WINDOWS, flags))


@pytest.mark.parametrize("images", [IMAGES, PLANES], ids=["pixels", "planes"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_cast_at_once_has_the_bits_of_what_is_cast_later(
    images: torch.Tensor, dtype: torch.dtype
) -> None:
    config = AugmentConfig(crop_pixels=16, flip="random", color_noise=0.1)
    normalizer = Normalizer(RANDOM.uniform(90, 140, (16, 16, 3)), np.full(3, 55.0), CPU)
    found, exact = (
        Augmenter(config, 0, STATISTICS, normalizer, one)(images, np.arange(4), 1, CROP_WINDOWS)
        for one in (dtype, torch.float32)
    )
    assert torch.equal(found, exact.to(dtype))
    assert found.is_contiguous(memory_format=torch.channels_last)
