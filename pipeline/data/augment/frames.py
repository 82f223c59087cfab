"""Frames out of many images that are in memory already: which ones, and taking them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from data_prep.shard_set.pixels import copy_windows
from pipeline.data.augment.device import to_device
from pipeline.data.augment.framing import ImageSize
from pipeline.data.augment.shifts import Flags
from pipeline.data.order.partition import Indices


@dataclass(frozen=True, kw_only=True, slots=True)
class Picks:
    """Which image each of N frames is of, and where in it: int64 N."""

    rows: Indices
    tops: Indices
    lefts: Indices
    size: ImageSize
    """Of the frames."""

    def on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows, tops and lefts, without waiting for the copies."""
        rows, tops, lefts = (to_device(part, device) for part in (self.rows, self.tops, self.lefts))
        return rows, tops, lefts


def whole_images(images: torch.Tensor) -> Picks:
    """Every image N×H×W×3, as it is."""
    count, height, width, _ = images.shape
    zeros = np.zeros(count, np.int64)
    return Picks(rows=np.arange(count), tops=zeros, lefts=zeros, size=(height, width))


def take_frames(
    images: torch.Tensor, picks: Picks | None, flips: Flags | None = None
) -> torch.Tensor:
    """Frames of images in memory, uint8 M×H×W×3 in, N×h×w×3 out; None takes them as they are.

    Those of `flips` are mirrored left to right. The images stay as they are.
    """
    if flips is None or not flips.any():
        if picks is None:
            return images
        flips = np.zeros(len(picks.rows), np.bool_)
    picks = picks or whole_images(images)
    if images.device.type == "cuda":
        from pipeline.data.augment import frames_cuda

        places = picks.on(images.device)
        return frames_cuda.take_frames(images, *places, to_device(flips, images.device), picks.size)
    images = images.contiguous()
    frames = np.empty((len(picks.rows), *picks.size, 3), np.uint8)
    _, height, width, channels = images.shape
    addresses = np.uint64(images.data_ptr()) + picks.rows.astype(np.uint64) * np.uint64(
        height * width * channels
    )
    failed = copy_windows(addresses, (height, width), picks.tops, picks.lefts, frames, flips)
    assert failed is None, "memory of this process"
    return torch.from_numpy(frames)
