"""From uint8 pixels to the network's input, on the device, in one place for every reader."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pipeline.config import AugmentConfig
from pipeline.data.partition import Indices
from pipeline.data.randomness import Stream, random_below, random_bits


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """The random choices for the images of one batch, each an array of N."""

    rows: npt.NDArray[np.int64]
    """First row of the crop, counted from `shift_pixels` above the image."""
    columns: npt.NDArray[np.int64]
    """First column of the crop, counted from `shift_pixels` left of the image."""
    flip: npt.NDArray[np.bool_]
    """Whether the crop is then mirrored left to right."""


def draw(config: AugmentConfig, seed: int, epoch: int, samples: Indices) -> Draws:
    """The choices for `samples` in `epoch`: a pure function, the same on any rank."""
    positions = 2 * config.shift_pixels + 1
    return Draws(
        rows=random_below(positions, seed, Stream.SHIFT_DOWN, epoch, samples),
        columns=random_below(positions, seed, Stream.SHIFT_RIGHT, epoch, samples),
        flip=_flips(config, seed, epoch, samples),
    )


def _flips(config: AugmentConfig, seed: int, epoch: int, samples: Indices) -> npt.NDArray[np.bool_]:
    match config.flip:
        case "none":
            return np.zeros(len(samples), dtype=np.bool_)
        case "random":
            return _coins(seed, epoch, samples)
        case "alternating":  # every image flipped in every second epoch (Jordan, arXiv 2404.00498)
            return _coins(seed, 0, samples) ^ (epoch % 2 == 1)


def _coins(seed: int, epoch: int, samples: Indices) -> npt.NDArray[np.bool_]:
    return np.asarray(random_bits(seed, Stream.FLIP, epoch, samples) >> np.uint64(63), np.bool_)


def apply(images: torch.Tensor, draws: Draws, shift_pixels: int) -> torch.Tensor:
    """Shift by up to `shift_pixels` each way (edges mirrored) and flip; uint8 N×H×W×3, same out.

    One gather of whole pixels: the mirrored edges are in the index, so that no image is padded.
    Raises `ValueError` if the images are too small to be mirrored so far.
    """
    count, height, width, channels = images.shape
    if shift_pixels >= min(height, width):
        raise ValueError(
            f"augment.shift_pixels is {shift_pixels}; "
            f"expected less than the size of the images, which are {height}×{width}"
        )
    rows = _mirrored(draws.rows[:, None] - shift_pixels + np.arange(height), height)
    lines = np.arange(count)[:, None] * height + rows
    steps = np.where(draws.flip[:, None], np.arange(width)[::-1], np.arange(width))
    columns = _mirrored(draws.columns[:, None] - shift_pixels + steps, width)
    starts, offsets = (
        torch.from_numpy(index).to(images.device, non_blocking=True)
        for index in (lines * width, columns)
    )
    pixels = starts[:, :, None] + offsets[:, None, :]
    return images.reshape(-1, channels).index_select(0, pixels.flatten()).view_as(images)


def _mirrored(places: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """Places outside [0, size), by less than `size`, reflected at its first or last pixel."""
    last = size - 1
    return np.asarray(last - np.abs(last - np.abs(places)), np.int64)


class Normalizer:
    """Subtracts a mean and divides by a deviation, per channel, 0–255 scale."""

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
    ) -> None:
        self._shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
        self._scale = torch.tensor([1 / s for s in std], device=device)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 N×H×W×3 → float32 N×3×H×W, channels last in memory."""
        count, height, width, channels = images.shape
        lines = images.reshape(count, height, width * channels).float()
        # Constants for a whole line: the CPU's inner loop is then long enough for vectors.
        lines = torch.addcmul(self._shift.repeat(width), lines, self._scale.repeat(width))
        return lines.view(images.shape).permute(0, 3, 1, 2)
