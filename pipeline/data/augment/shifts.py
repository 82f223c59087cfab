"""Where each cropped image is moved and whether it is mirrored: the draws, and their application.

What is taken from a stored image is the reader's part: see `pipeline.data.augment.crop_policy`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import numpy as np
import numpy.typing as npt
import torch

from pipeline.config.augment import AugmentConfig
from pipeline.data.augment.crops import Flags, to_device
from pipeline.data.order.partition import Indices
from pipeline.data.order.randomness import Stream, random_below, random_bits


@dataclass(frozen=True, kw_only=True, slots=True)
class Shifts:
    """How far each of N images is moved down and to the right: the other way if below 0."""

    down: Indices
    right: Indices


def draw_shifts(config: AugmentConfig, seed: int, epoch: int, samples: Indices) -> Shifts:
    """The shifts of `samples` in `epoch`: the same on any rank."""
    most = config.shift_pixels
    streams = Stream.SHIFT_DOWN, Stream.SHIFT_RIGHT
    up, left = (random_below(2 * most + 1, seed, stream, epoch, samples) for stream in streams)
    return Shifts(down=most - up, right=most - left)


def draw_flips(config: AugmentConfig, seed: int, epoch: int, samples: Indices) -> Flags:
    """Which of `samples` are mirrored in `epoch`."""
    match config.flip:
        case "none":
            return np.zeros(len(samples), dtype=np.bool_)
        case "random":
            return _coins(seed, epoch, samples)
        case "alternating":  # every image flipped in every second epoch (Jordan, arXiv 2404.00498)
            return _coins(seed, 0, samples) ^ (epoch % 2 == 1)
        case unknown:
            assert_never(unknown)


def _coins(seed: int, epoch: int, samples: Indices) -> Flags:
    return np.asarray(random_bits(seed, Stream.FLIP, epoch, samples) >> np.uint64(63), np.bool_)


def shift_and_flip(images: torch.Tensor, shifts: Shifts, flips: Flags) -> torch.Tensor:
    """Move, then mirror: uint8 N×H×W×3 in and out; what comes in at an edge is its mirror image.

    One gather of whole pixels: mirrored edges are in the index, so that no image is padded.
    """
    count, height, width, channels = images.shape
    rows = _mirrored(np.arange(height) - shifts.down[:, None], height)
    lines = np.arange(count)[:, None] * height + rows
    steps = np.where(flips[:, None], np.arange(width)[::-1], np.arange(width))
    columns = _mirrored(steps - shifts.right[:, None], width)
    starts, offsets = (to_device(index, images.device) for index in (lines * width, columns))
    pixels = starts[:, :, None] + offsets[:, None, :]
    taken = images.reshape(-1, channels).index_select(0, pixels.flatten())
    return taken.view(images.shape)


def _mirrored(places: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """Places outside [0, size), by less than `size`, reflected at its first or last pixel."""
    last = size - 1
    return np.asarray(last - np.abs(last - np.abs(places)), np.int64)
