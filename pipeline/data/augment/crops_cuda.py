"""Crops of images on a GPU as one Triton kernel: gather, crop, flip and, if asked for, colour,
normalization and the cast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from pipeline.data.augment.crops import CropWindows, Flags, to_device
from pipeline.data.augment.planes import is_planar, size_of

_BLOCK = 1024


def take_crops(images: torch.Tensor, crop_windows: CropWindows, flips: Flags) -> torch.Tensor:
    """Crops of uint8 M×H×W×3 or of planes, some mirrored: uint8 N×h×w×3."""
    out = images.new_empty((len(flips), *crop_windows.size, 3))
    nothing = torch.empty(0, device=images.device)
    _launch(images, crop_windows, flips, out, nothing, nothing, nothing, 1.0)
    return out


def normalize_crops(
    images: torch.Tensor,
    crop_windows: CropWindows,
    flips: Flags,
    *,
    shift: torch.Tensor,
    scale: torch.Tensor,
    color_shifts: torch.Tensor | None,
    divisor: float,
) -> torch.Tensor:
    """The same crops x as float32 N×3×h×w, channels-last: ((x + colour) scale + shift) / divisor.

    `scale` is float32 3, `shift` float32 3 or h×w×3, `color_shifts` float32 N×3.
    """
    out = torch.empty((len(flips), *crop_windows.size, 3), device=images.device)
    colors = color_shifts if color_shifts is not None else out.new_zeros((len(flips), 3))
    normal = shift.contiguous(), scale, colors, 1 / divisor
    _launch(images, crop_windows, flips, out, *normal)
    return out.permute(0, 3, 1, 2)


def _launch(
    images: torch.Tensor,
    crop_windows: CropWindows,
    flips: Flags,
    out: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    colors: torch.Tensor,
    inverse_divisor: float,
) -> None:
    count, height, width, channels = out.shape
    assert images.is_contiguous()
    if count == 0:
        return
    windows = crop_windows.rows, crop_windows.tops, crop_windows.lefts, flips.view(np.uint8)
    grid = (count, triton.cdiv(height * width * channels, _BLOCK))
    with torch.cuda.device_of(images):
        _crop_kernel[grid](
            images,
            *(to_device(part, images.device) for part in windows),
            out,
            *(shift, scale, colors, inverse_divisor),
            *(*size_of(images), height, width),
            IS_PLANAR=is_planar(images),
            NORMALIZES=out.dtype == torch.float32,
            SHIFT_IS_IMAGE=shift.dim() == 3,
            BLOCK=_BLOCK,
        )


def _compiled(function: Callable[..., Any]) -> Any:
    return triton.jit(function)


@_compiled
def _crop_kernel(
    images: tl.tensor,
    rows: tl.tensor,
    tops: tl.tensor,
    lefts: tl.tensor,
    flips: tl.tensor,
    out: tl.tensor,
    shift: tl.tensor,
    scale: tl.tensor,
    colors: tl.tensor,
    inverse_divisor: tl.tensor,
    image_height: tl.tensor,
    image_width: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    IS_PLANAR: tl.constexpr,
    NORMALIZES: tl.constexpr,
    SHIFT_IS_IMAGE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Program (crop, stretch of its numbers)."""
    crop = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = place < height * width * 3
    pixel, channel = place // 3, place % 3
    y, x = pixel // width, pixel % width
    x = tl.where(tl.load(flips + crop) != 0, width - 1 - x, x)
    y += tl.load(tops + crop)
    x += tl.load(lefts + crop)
    # 64 bits: a resident split has more bytes than 32 can count.
    start = tl.load(rows + crop) * image_height * image_width
    if IS_PLANAR:  # as `yuv.chroma_terms`
        luma = images + start * 3 // 2
        blue = luma + image_height * image_width + (y // 2) * (image_width // 2) + x // 2
        red = blue + image_height * image_width // 4
        cb = tl.load(blue, mask=exists, other=0).to(tl.int32) - 128
        cr = tl.load(red, mask=exists, other=0).to(tl.int32) - 128
        green_term = (32768 - 22554 * cb - 46802 * cr) >> 16
        blue_term = (116130 * cb + 32768) >> 16
        term = tl.where(channel == 1, green_term, blue_term)
        term = tl.where(channel == 0, (91881 * cr + 32768) >> 16, term)
        value = tl.load(luma + y * image_width + x, mask=exists, other=0).to(tl.int32) + term
        value = tl.minimum(tl.maximum(value, 0), 255)
    else:
        value = tl.load(images + (start + y * image_width + x) * 3 + channel, mask=exists, other=0)
    target = out + crop * height * width * 3 + place
    if NORMALIZES:
        color = tl.load(colors + crop * 3 + channel, mask=exists, other=0.0)
        factor = tl.load(scale + channel, mask=exists, other=0.0)
        offset = tl.load(shift + (place if SHIFT_IS_IMAGE else channel), mask=exists, other=0.0)
        normal = (value.to(tl.float32) + color) * factor + offset
        tl.store(target, normal * inverse_divisor, mask=exists)
    else:
        tl.store(target, value, mask=exists)
