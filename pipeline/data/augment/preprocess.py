"""From cropped images to the network's input, in training and in evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import numpy.typing as npt
import torch

from data_prep.shard_set.manifest import Statistics
from pipeline.config.augment import AugmentConfig, ComponentsOfColor
from pipeline.data.augment.crop_policy import ImageSize, input_size
from pipeline.data.augment.crops import CropWindows, has_kernel, take_crops, to_device
from pipeline.data.augment.normalize import Normalizer
from pipeline.data.augment.planes import size_of
from pipeline.data.augment.shifts import draw_flips, draw_shifts, shift_and_flip
from pipeline.data.order.partition import Indices
from pipeline.data.order.randomness import Stream, dropout_keys, random_normals


@dataclass(frozen=True, slots=True)
class ColorComponents:
    """Components of RGB on the 0–255 scale."""

    stds: tuple[float, ...]
    """Standard deviations along them."""
    vectors: tuple[tuple[float, ...], ...]
    """3×3, row by row: column i is component i."""


ORIGINAL = ColorComponents(
    stds=(19.7208, 37.0939, 121.7801),
    vectors=(
        (0.41796, -0.71258, -0.56351),
        (-0.81698, -0.02354, -0.57618),
        (0.39731, 0.70120, -0.59200),
    ),
)
"""Of ImageNet, as `make-data/input_meta` of cuda-convnet2 has them. They are deviations, as the
2012 code takes them; the paper speaks of eigenvalues, which are their squares."""


def color_components(source: ComponentsOfColor, statistics: Statistics) -> ColorComponents:
    """Those that `augment.color_components` means."""
    match source:
        case "original":
            return ORIGINAL
        case "shards":
            return ColorComponents(statistics.pca_stds, statistics.pca_vectors)
        case unknown:
            assert_never(unknown)


def draw_color_shifts(
    components: ColorComponents, size: float, seed: int, epoch: int, samples: Indices
) -> npt.NDArray[np.float64]:
    """What is added to each channel of each image, N×3: one draw an image and epoch."""
    draws = random_normals(3, seed, Stream.COLOR, epoch, samples)
    return np.asarray(size * (draws * components.stds) @ np.array(components.vectors).T)


class Augmenter:
    """Training: random shifts, flips and colours, drawn by (seed, epoch, sample) only."""

    def __init__(
        self,
        config: AugmentConfig,
        seed: int,
        statistics: Statistics,
        normalizer: Normalizer,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`dtype` is what the network's first layer computes in: it would cast its input anyway."""
        self._config = config
        self._dtype = dtype
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
        """uint8 M×H×W×3 or planes M×(3H/2)×W to `dtype` N×3×h×w, channels last.

        `crop_windows` says which crops of `images` the N `samples` are; None: all, in order.
        """
        config = self._config
        flips = draw_flips(config, self._seed, epoch, samples)
        if config.shift_pixels:
            shifts = draw_shifts(config, self._seed, epoch, samples)
            images = shift_and_flip(take_crops(images, crop_windows), shifts, flips)
            crop_windows, flips = None, np.zeros_like(flips)
        colors: torch.Tensor | None = None
        divisor = 1.0
        end = config.color_noise_until_epoch
        if config.color_noise > 0 and (end is None or epoch < end):
            noise = config.color_noise
            drawn = draw_color_shifts(self._components, noise, self._seed, epoch, samples)
            colors = to_device(drawn.astype(np.float32), images.device)
            divisor = 1 + noise  # as in the 2012 code: training and test images keep one scale
        return self._normalizer.take(
            *(images, crop_windows, flips), color_shifts=colors, divisor=divisor, dtype=self._dtype
        )

    def dropout_keys(self, samples: Indices, epoch: int, device: torch.device) -> torch.Tensor:
        """A key for each sample, int64 N, which decides its dropout masks."""
        return to_device(dropout_keys(self._seed, epoch, samples), device)


class Viewer:
    """Evaluation: the image or the middle of it, or the ten views of 2012 (section 4.1)."""

    def __init__(
        self, config: AugmentConfig, num_views: int, image_size: ImageSize, normalizer: Normalizer
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
        """uint8 N×H×W×3 or planes to each view of them, float32 N×3×H'×W', channels last."""
        if not has_kernel(images):  # which makes pixels of planes for each view, at no cost
            images = take_crops(images, None)
        (height, width), count = size_of(images), len(images)
        bottom, right = height - self._size[0], width - self._size[1]
        corners = [(bottom // 2, right // 2)]
        if self._is_multi:
            corners += [(0, 0), (0, right), (bottom, 0), (bottom, right)]
        for top, left in corners:
            windows = CropWindows(
                rows=np.arange(count),
                tops=np.full(count, top),
                lefts=np.full(count, left),
                size=self._size,
            )
            for is_flipped in (False, True)[: 1 + self._is_multi]:
                yield self._normalizer.take(images, windows, np.full(count, is_flipped))
