"""From uint8 pixels to the network's numbers, in one place for every reader."""

from __future__ import annotations

from typing import assert_never

import numpy as np
import numpy.typing as npt
import torch

from data_prep.shard_set.manifest import Statistics
from pipeline.config.augment import AugmentConfig
from pipeline.data.augment.crop_policy import input_size
from pipeline.data.augment.crops import (
    CropWindows,
    Flags,
    has_kernel,
    take_crops,
    whole_images,
)

_CHANNELS = ("red", "green", "blue")
_LEAST_DEVIATION = 0.1
"""In grey levels; a channel with less is taken as constant."""


class Normalizer:
    """Subtracts a mean and divides by a deviation, per channel, 0–255 scale."""

    def __init__(
        self, mean: npt.NDArray[np.floating], std: npt.NDArray[np.floating], device: torch.device
    ) -> None:
        """`mean` is 3, or H×W×3 for inputs of H×W; `std` is 3."""
        self.shift = torch.from_numpy(-mean / std).float().to(device)
        self.scale = torch.from_numpy(1 / std).float().to(device)
        self._quotients: dict[float, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(
        self,
        images: torch.Tensor,
        *,
        color_shifts: torch.Tensor | None = None,
        divisor: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:
        """uint8 N×H×W×3 → `dtype` N×3×H×W, channels last in memory, computed in float32.

        `color_shifts`, N×3 on the 0–255 scale, are added first; all is divided by `divisor` last.
        """
        count, height, width, channels = images.shape
        shift, scale = self._divided(divisor)
        # Rows of whole lines: the CPU's inner loop is then long enough for vectors.
        lines = images.reshape(count, height, width * channels).float()
        shift = shift.expand(height, width, channels).reshape(height, width * channels)
        lines = torch.addcmul(shift, lines, scale.repeat(width))
        if color_shifts is not None:
            lines += (color_shifts * scale).repeat(1, width)[:, None, :]
        return lines.to(dtype).view(images.shape).permute(0, 3, 1, 2)

    def take(
        self,
        images: torch.Tensor,
        crop_windows: CropWindows | None,
        flips: Flags,
        *,
        color_shifts: torch.Tensor | None = None,
        divisor: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:
        """Crops of uint8 M×H×W×3 or of planes, some mirrored, as `__call__` makes them: N×3×h×w.

        On a GPU one kernel does it all.
        """
        if not has_kernel(images):
            crops = take_crops(images, crop_windows, flips)
            return self(crops, color_shifts=color_shifts, divisor=divisor, dtype=dtype)
        from pipeline.data.augment import crops_cuda

        shift, scale = self._divided(divisor)
        return crops_cuda.normalize_crops(
            images,
            crop_windows or whole_images(images),
            flips,
            shift=shift,
            scale=scale,
            color_shifts=None if color_shifts is None else color_shifts * scale,
            dtype=dtype,
        )

    def _divided(self, divisor: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Shift and scale, divided by the host: a GPU multiplies by the inverse, and rounds twice.

        A run has at most two divisors.
        """
        if divisor not in self._quotients:
            shift, scale = (
                (part.cpu() / divisor).to(part.device) for part in (self.shift, self.scale)
            )
            self._quotients[divisor] = shift, scale
        return self._quotients[divisor]


def build_normalizer(
    config: AugmentConfig,
    statistics: Statistics,
    mean_image: npt.NDArray[np.float32] | None,
    device: torch.device,
) -> Normalizer:
    """The normalization for training and evaluation alike.

    `mean_image`, H×W×3, is needed where `config.subtracts_mean_image`.
    """
    ones = np.ones(3)
    match config.normalize:
        case "none":
            return Normalizer(0 * ones, ones, device)
        case "mean_std":
            std = np.array(statistics.std)
            std[constant_channels(config, statistics)] = 1.0
            return Normalizer(np.array(statistics.mean), std, device)
        case "mean_image":
            assert mean_image is not None
            # Its middle, wherever the crop of an image is from, as in the 2012 code.
            height, width = input_size(config, mean_image.shape[:2])
            top, left = (mean_image.shape[0] - height) // 2, (mean_image.shape[1] - width) // 2
            return Normalizer(mean_image[top : top + height, left : left + width], ones, device)
        case unknown:
            assert_never(unknown)


def constant_channels(config: AugmentConfig, statistics: Statistics) -> list[int]:
    """Channels not to be divided by their deviation, which is zero or that of a few pixels.

    The quotients would be huge, or not numbers.
    """
    match config.normalize:
        case "none" | "mean_image":
            return []
        case "mean_std":
            stds = enumerate(statistics.std)
            return [channel for channel, std in stds if not std >= _LEAST_DEVIATION]
        case unknown:
            assert_never(unknown)


def constancy(config: AugmentConfig, statistics: Statistics) -> str | None:
    """A sentence about channels that are not divided by their deviation; None: there are none."""
    names = " and ".join(
        f"{_CHANNELS[channel]} (deviation {statistics.std[channel]:.2g})"
        for channel in constant_channels(config, statistics)
    )
    if not names:
        return None
    return (
        f"constant in all training images: {names}; augment.normalize mean_std divides by 1 there"
    )
