"""Crops of images on a GPU as one Triton kernel: gather, crop, flip and, if asked for, colour,
normalization and the cast.

A lane makes the three numbers of a pixel: of planes it loads one value of luma and two of chroma. A
program makes whole rows of a crop, so that no place is divided by the width. Compiled for sm_90 the
kernel spills no register; its stores, three apart, are put together in the second-level cache.

The numbers are those of the host, bit for bit, where torch's `addcmul` rounds once, as it does on
processors with AVX2; else both differ by one rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from pipeline.data.augment.crops import CropWindows, Flags, to_device
from pipeline.data.augment.planes import is_planar, size_of

_TILE = 1024
"""Pixels of a program, about: a power of two."""


def take_crops(images: torch.Tensor, crop_windows: CropWindows, flips: Flags) -> torch.Tensor:
    """Crops of uint8 M×H×W×3 or of planes, some mirrored: uint8 N×h×w×3."""
    crops: torch.Tensor = _crops(*_operands(images, crop_windows, flips), *[None] * 3, torch.uint8)
    return crops


def normalize_crops(
    images: torch.Tensor,
    crop_windows: CropWindows,
    flips: Flags,
    *,
    shift: torch.Tensor,
    scale: torch.Tensor,
    color_shifts: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The same crops x as `dtype` N×3×h×w, channels-last: scale x + shift + colour, in float32.

    `scale` is float32 3, `shift` float32 3 or h×w×3, `color_shifts` float32 N×3.
    """
    normal = shift.contiguous(), scale, color_shifts
    crops: torch.Tensor = _crops(*_operands(images, crop_windows, flips), *normal, dtype)
    return crops.permute(0, 3, 1, 2)


def _operands(
    images: torch.Tensor, crop_windows: CropWindows, flips: Flags
) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """Images, and the windows as int32 N×4, so that there is one copy to the device."""
    corners = crop_windows.rows, crop_windows.tops, crop_windows.lefts
    windows = np.stack([*corners, flips], axis=1, dtype=np.int32, casting="unsafe")
    return images.contiguous(), to_device(windows, images.device), *crop_windows.size


@torch.library.custom_op(
    "alexnet_2012::crops",
    mutates_args=(),
    schema="(Tensor images, Tensor windows, int height, int width, Tensor? shift, Tensor? scale, "
    "Tensor? color_shifts, ScalarType dtype) -> Tensor",
)
def _crops(
    images: torch.Tensor,
    windows: torch.Tensor,
    height: int,
    width: int,
    shift: torch.Tensor | None,
    scale: torch.Tensor | None,
    color_shifts: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """N×h×w×3 of `dtype`; uint8 without `shift` and `scale`."""
    out: torch.Tensor = empty_crops(
        images, windows, height, width, shift, scale, color_shifts, dtype
    )
    if out.numel() == 0:
        return out
    columns = triton.next_power_of_2(width)
    rows = max(1, min(_TILE // columns, triton.next_power_of_2(height)))
    with torch.cuda.device_of(images):
        _crop_kernel[(len(windows), triton.cdiv(height, rows))](
            *(images, windows, out, shift, scale, color_shifts),
            *(*size_of(images), height, width),
            IS_PLANAR=is_planar(images),
            SHIFT_IS_IMAGE=shift is not None and shift.dim() == 3,
            ROWS=rows,
            COLUMNS=columns,
        )
    return out


@_crops.register_fake
def empty_crops(
    images: torch.Tensor, windows: torch.Tensor, height: int, width: int, *others: Any
) -> torch.Tensor:
    """What the kernel fills."""
    out: torch.Tensor = images.new_empty((len(windows), height, width, 3), dtype=others[-1])
    return out


def _compiled(function: Callable[..., Any]) -> Any:
    return triton.jit(function)


@_compiled
def _store_channel(
    target: tl.tensor,
    place: tl.tensor,
    exists: tl.tensor,
    value: tl.tensor,
    crop: tl.tensor,
    shift: tl.tensor,
    scale: tl.tensor,
    color_shifts: tl.tensor,
    SHIFT_IS_IMAGE: tl.constexpr,
    CHANNEL: tl.constexpr,
) -> None:
    """One channel, int32, of the pixels at `place` of the crop."""
    value = tl.minimum(tl.maximum(value, 0), 255)
    if scale is not None:
        if SHIFT_IS_IMAGE:
            offset = tl.load(shift + place * 3 + CHANNEL, mask=exists, other=0.0)
        else:
            offset = tl.load(shift + CHANNEL) + tl.zeros_like(place).to(tl.float32)
        factor = tl.load(scale + CHANNEL) + tl.zeros_like(offset)
        value = tl.fma(value.to(tl.float32), factor, offset)
        if color_shifts is not None:
            value += tl.load(color_shifts + crop * 3 + CHANNEL)
    tl.store(target + place * 3 + CHANNEL, value.to(target.dtype.element_ty), mask=exists)


@_compiled
def _crop_kernel(
    images: tl.tensor,
    windows: tl.tensor,
    out: tl.tensor,
    shift: tl.tensor,
    scale: tl.tensor,
    color_shifts: tl.tensor,
    image_height: tl.tensor,
    image_width: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    IS_PLANAR: tl.constexpr,
    SHIFT_IS_IMAGE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Program (crop, rows of it)."""
    # 64 bits: a resident split has more bytes than 32 can count.
    crop = tl.program_id(0).to(tl.int64)
    row = tl.load(windows + crop * 4).to(tl.int64)
    top, left = tl.load(windows + crop * 4 + 1), tl.load(windows + crop * 4 + 2)
    is_flipped = tl.load(windows + crop * 4 + 3) != 0
    y = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    x = tl.arange(0, COLUMNS)[None, :]
    exists = (y < height) & (x < width)
    place = y * width + x
    from_y, from_x = top + y, left + tl.where(is_flipped, width - 1 - x, x)
    area = image_height * image_width
    pixel = from_y * image_width + from_x
    if IS_PLANAR:  # as `yuv.chroma_terms`
        image = images + row * (area * 3 // 2)
        chroma = (from_y >> 1) * (image_width >> 1) + (from_x >> 1)
        luma = tl.load(image + pixel, mask=exists, other=0).to(tl.int32)
        cb = tl.load(image + area + chroma, mask=exists, other=0).to(tl.int32) - 128
        cr = tl.load(image + area + area // 4 + chroma, mask=exists, other=0).to(tl.int32) - 128
        red = luma + ((91881 * cr + 32768) >> 16)
        green = luma + ((32768 - 22554 * cb - 46802 * cr) >> 16)
        blue = luma + ((116130 * cb + 32768) >> 16)
    else:
        image = images + row * (area * 3)
        red = tl.load(image + pixel * 3, mask=exists, other=0).to(tl.int32)
        green = tl.load(image + pixel * 3 + 1, mask=exists, other=0).to(tl.int32)
        blue = tl.load(image + pixel * 3 + 2, mask=exists, other=0).to(tl.int32)
    target = out + crop * (height * width * 3)
    normal = crop, shift, scale, color_shifts, SHIFT_IS_IMAGE
    _store_channel(target, place, exists, red, *normal, 0)
    _store_channel(target, place, exists, green, *normal, 1)
    _store_channel(target, place, exists, blue, *normal, 2)
