"""From cropped images to the network's input, in training and in evaluation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from data_prep.shard_set.manifest import Statistics
from pipeline.config.augment import AugmentConfig
from pipeline.data.augment.color import color_components, draw_color_shifts
from pipeline.data.augment.crop_policy import ImageSize, input_size
from pipeline.data.augment.crops import CropWindows, take_crops
from pipeline.data.augment.device import to_device
from pipeline.data.augment.normalize import Normalizer
from pipeline.data.augment.shifts import draw_flips, draw_shifts, shift_and_flip
from pipeline.data.order.partition import Indices
from pipeline.data.order.randomness import dropout_keys


class Augmenter:
    """Training: random shifts, flips and colours, drawn by (seed, epoch, sample) only."""

    def __init__(
        self, config: AugmentConfig, seed: int, statistics: Statistics, normalizer: Normalizer
    ) -> None:
        self._config = config
        self._seed = seed
        self._normalizer = normalizer
        self._components = color_components(config.color_components, statistics)

    def __call__(
        self,
        images: torch.Tensor,
        samples: Indices,
        epoch: int,
        crop_windows: CropWindows | None = None,
    ) -> torch.Tensor:
        """uint8 M×H×W×3 to float32 N×3×h×w, channels last.

        `crop_windows` says which crops of `images` the N `samples` are; None: all, in order.
        """
        config, device = self._config, images.device
        flips = draw_flips(config, self._seed, epoch, samples)
        if config.shift_pixels:
            shifts = draw_shifts(config, self._seed, epoch, samples)
            images = shift_and_flip(take_crops(images, crop_windows), shifts, flips)
            crop_windows, flips = None, np.zeros_like(flips)
        if not self._adds_color(epoch):
            return self._normalizer.take(images, crop_windows, flips)
        size = config.color_noise
        colors = draw_color_shifts(self._components, size, self._seed, epoch, samples)
        return self._normalizer.take(
            images,
            crop_windows,
            flips,
            color_shifts=to_device(colors.astype(np.float32), device),
            divisor=1 + size,  # the code keeps the scale of training and test images alike so
        )

    def dropout_keys(self, samples: Indices, epoch: int, device: torch.device) -> torch.Tensor:
        """A key for each sample, int64 N, which decides its dropout masks."""
        return to_device(dropout_keys(self._seed, epoch, samples), device)

    def _adds_color(self, epoch: int) -> bool:
        end = self._config.color_noise_until_epoch
        return self._config.color_noise > 0 and (end is None or epoch < end)


class Viewer:
    """Evaluation: the image or the middle of it, or the ten views of 2012 (section 4.1)."""

    def __init__(
        self,
        config: AugmentConfig,
        num_views: int,
        image_size: ImageSize,
        normalizer: Normalizer,
    ) -> None:
        """For cropped images of `image_size`; raises `ValueError` if ten views would coincide."""
        assert num_views in (1, 10)
        self._size = input_size(config, image_size)
        if num_views > 1 and min(image_size) == min(self._size):
            raise ValueError(
                f"ten views need images larger than the network's input, and they are "
                f"{image_size[0]}×{image_size[1]}: evaluate one view, or convert the shard set "
                "with a larger --size and train with augment.crop_pixels"
            )
        self._is_multi = num_views == 10
        self._normalizer = normalizer

    def __call__(self, images: torch.Tensor) -> Iterator[torch.Tensor]:
        """uint8 N×H×W×3 to each view of them, float32 N×3×H'×W', channels last."""
        height, width = self._size
        bottom, right = images.shape[1] - height, images.shape[2] - width
        places = [(bottom // 2, right // 2)]
        if self._is_multi:
            places += [(0, 0), (0, right), (bottom, 0), (bottom, right)]
        for top, left in places:
            view = images[:, top : top + height, left : left + width]
            yield self._normalizer(view)
            if self._is_multi:
                yield self._normalizer(view.flip(2))
