"""Crops of images that are in memory already: which ones, and taking them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from data_prep.shard_set.pixels import copy_windows
from pipeline.data.augment.crop_policy import ImageSize
from pipeline.data.augment.device import to_device
from pipeline.data.augment.shifts import Flags
from pipeline.data.order.partition import Indices


@dataclass(frozen=True, kw_only=True, slots=True)
class CropWindows:
    """Row and corner of N crops of one size, in a batch of images: int64 N."""

    rows: Indices
    tops: Indices
    lefts: Indices
    size: ImageSize
    """Height and width of each crop."""

    def on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows, tops and lefts, without waiting for the copies."""
        rows, tops, lefts = (to_device(part, device) for part in (self.rows, self.tops, self.lefts))
        return rows, tops, lefts


def whole_images(images: torch.Tensor) -> CropWindows:
    """Every image N×H×W×3, as it is."""
    count, height, width, _ = images.shape
    zeros = np.zeros(count, np.int64)
    return CropWindows(rows=np.arange(count), tops=zeros, lefts=zeros, size=(height, width))


def take_crops(
    images: torch.Tensor, crop_windows: CropWindows | None, flips: Flags | None = None
) -> torch.Tensor:
    """Crops of images in memory, uint8 M×H×W×3 in, N×h×w×3 out; None takes them as they are.

    Those of `flips` are mirrored left to right. The images stay as they are.
    """
    if flips is None or not flips.any():
        if crop_windows is None:
            return images
        flips = np.zeros(len(crop_windows.rows), np.bool_)
    crop_windows = crop_windows or whole_images(images)
    if images.device.type == "cuda":
        from pipeline.data.augment import crops_cuda

        positions = crop_windows.on(images.device)
        return crops_cuda.take_crops(
            images, *positions, to_device(flips, images.device), crop_windows.size
        )
    images = images.contiguous()
    crops = np.empty((len(crop_windows.rows), *crop_windows.size, 3), np.uint8)
    _, height, width, channels = images.shape
    addresses = np.uint64(images.data_ptr()) + crop_windows.rows.astype(np.uint64) * np.uint64(
        height * width * channels
    )
    failed = copy_windows(
        addresses, (height, width), crop_windows.tops, crop_windows.lefts, crops, flips
    )
    assert failed is None, "memory of this process"
    return torch.from_numpy(crops)
