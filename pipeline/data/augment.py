"""From uint8 pixels to the network's input, on the device, in one place for every reader."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from pipeline.config import AugmentConfig
from pipeline.data.partition import Indices
from pipeline.data.randomness import Stream, random_below, random_bits


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """The random choices for the images of one batch, each an array of N."""

    rows: npt.NDArray[np.int64]
    """First row of the crop in the padded image."""
    columns: npt.NDArray[np.int64]
    flip: npt.NDArray[np.bool_]


def draw(config: AugmentConfig, seed: int, epoch: int, samples: Indices) -> Draws:
    """The choices for `samples` in `epoch`: a pure function, the same on any rank."""
    positions = 2 * config.shift_pixels + 1
    return Draws(
        rows=random_below(positions, seed, Stream.SHIFT_DOWN, epoch, samples),
        columns=random_below(positions, seed, Stream.SHIFT_RIGHT, epoch, samples),
        flip=_flips(config, seed, epoch, samples),
    )


def _flips(
    config: AugmentConfig, seed: int, epoch: int, samples: Indices
) -> npt.NDArray[np.bool_]:
    match config.flip:
        case "none":
            return np.zeros(len(samples), dtype=np.bool_)
        case "random":
            return random_bits(seed, Stream.FLIP, epoch, samples) >> np.uint64(63) == 1
        case "alternating":  # every image flipped in every second epoch (Jordan, arXiv 2404.00498)
            first = random_bits(seed, Stream.FLIP, 0, samples) >> np.uint64(63) == 1
            return first ^ (epoch % 2 == 1)


def apply(images: torch.Tensor, draws: Draws, shift_pixels: int) -> torch.Tensor:
    """Shift by up to `shift_pixels` each way (edges mirrored) and flip; uint8 N×H×W×3, same out."""
    count, height, width, _ = images.shape
    if shift_pixels:
        planes = images.permute(0, 3, 1, 2)
        planes = F.pad(planes, (shift_pixels,) * 4, mode="reflect")
        images = planes.permute(0, 2, 3, 1)
    rows = torch.from_numpy(draws.rows[:, None] + np.arange(height))
    steps = np.where(draws.flip[:, None], np.arange(width)[::-1], np.arange(width))
    columns = torch.from_numpy(draws.columns[:, None] + steps)
    which = torch.arange(count)[:, None, None]
    places = (index.to(images.device, non_blocking=True) for index in (which, rows, columns))
    which, rows, columns = places
    return images[which, rows[:, :, None], columns[:, None, :]]


class Normalizer:
    """Subtracts a mean and divides by a deviation, per channel, 0–255 scale."""

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
    ) -> None:
        self._shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
        self._scale = torch.tensor([1 / s for s in std], device=device)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 N×H×W×3 → float32 N×3×H×W, channels last in memory."""
        return torch.addcmul(self._shift, images.float(), self._scale).permute(0, 3, 1, 2)
