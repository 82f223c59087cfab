"""Crops of images that are in memory already: which ones, and taking them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from data_prep.shard_set.copying import copy_windows
from pipeline.data.augment.crop_policy import ImageSize
from pipeline.data.augment.planes import is_planar, size_of, to_rgb
from pipeline.data.order.partition import Indices

Flags = npt.NDArray[np.bool_]


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
    if images.device.type == "cuda":
        from pipeline.data.augment import crops_cuda

        return crops_cuda.take_crops(images, crop_windows, flips)
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
