"""Crops of images that are in memory already: which ones, and taking them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from data_prep.shard_set.copying import copy_windows
from data_prep.shard_set.yuv import chroma_terms
from pipeline.config.kernel_compiler import compiler_fault
from pipeline.data.augment.crop_policy import ImageSize
from pipeline.data.augment.planes import is_planar, size_of, to_rgb
from pipeline.data.order.partition import Indices

Flags = npt.NDArray[np.bool_]

_HAS_COMPILER = compiler_fault() is None


@dataclass(frozen=True, kw_only=True, slots=True)
class CropWindows:
    """Row and corner of N crops of one size, in a batch of images: int64 N."""

    rows: Indices
    tops: Indices
    lefts: Indices
    size: ImageSize
    """Height and width of each crop."""


def whole_images(images: torch.Tensor, rows: Indices | None = None) -> CropWindows:
    """The images N×H×W×3, or as planes, of these rows (None: all), uncropped."""
    rows = np.arange(len(images)) if rows is None else rows
    zeros = np.zeros(len(rows), np.int64)
    return CropWindows(rows=rows, tops=zeros, lefts=zeros, size=size_of(images))


def to_device(array: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """A fresh array as a tensor on `device`, without waiting for the copy.

    A GPU copies by itself from pinned memory only; for any other the host would wait.
    """
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def has_kernel(images: torch.Tensor) -> bool:
    """Whether `crops_cuda` takes crops of them: they are on a GPU, and Triton can compile."""
    return images.device.type == "cuda" and _HAS_COMPILER


def take_crops(
    images: torch.Tensor, crop_windows: CropWindows | None, flips: Flags | None = None
) -> torch.Tensor:
    """Crops of images in memory, uint8 M×H×W×3 or planes in, N×h×w×3 out; None takes all whole.

    Those of `flips` are mirrored left to right. The images stay as they are.
    """
    if crop_windows is None and (flips is None or not flips.any()) and not is_planar(images):
        return images
    crop_windows = crop_windows or whole_images(images)
    if flips is None:
        flips = np.zeros(len(crop_windows.rows), np.bool_)
    if has_kernel(images):
        from pipeline.data.augment import crops_cuda

        return crops_cuda.take_crops(images, crop_windows, flips)
    if images.device.type == "cuda":
        return take_crops_plain(images, crop_windows, flips)
    if is_planar(images):
        images = to_rgb(images[torch.from_numpy(crop_windows.rows)])
        crop_windows = replace(crop_windows, rows=np.arange(len(images)))
    images = images.contiguous()
    rows, tops, lefts = crop_windows.rows, crop_windows.tops, crop_windows.lefts
    _, height, width, channels = images.shape
    crops = np.empty((len(rows), *crop_windows.size, channels), np.uint8)
    image_bytes = np.uint64(height * width * channels)
    addresses = np.uint64(images.data_ptr()) + rows.astype(np.uint64) * image_bytes
    failed = copy_windows(addresses, (height, width), tops, lefts, crops, flips)
    assert failed is None, "memory of this process"
    return torch.from_numpy(crops)


def take_crops_plain(images: torch.Tensor, crop_windows: CropWindows, flips: Flags) -> torch.Tensor:
    """The same of torch's own operations, for any device: what a GPU without Triton computes."""
    height, width = crop_windows.size
    columns = np.where(flips[:, None], np.arange(width)[::-1], np.arange(width))
    rows, y, x = (
        to_device(places, images.device)
        for places in (
            crop_windows.rows[:, None, None],
            (crop_windows.tops[:, None] + np.arange(height))[:, :, None],
            (crop_windows.lefts[:, None] + columns)[:, None, :],
        )
    )
    if not is_planar(images):
        return images[rows, y, x]
    image_height, image_width = size_of(images)
    planes = images[:, image_height:].view(-1, 2, image_height // 2, image_width // 2)
    chroma = [planes[rows, plane, y // 2, x // 2].int() for plane in (0, 1)]
    pixels = images[rows, y, x].int()[..., None] + torch.stack(chroma_terms(chroma), -1)
    return pixels.clamp_(0, 255).to(torch.uint8)
