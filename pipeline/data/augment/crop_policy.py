"""Crop policies: which box of a stored image is read, and its output size. No pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np
import numpy.typing as npt

from pipeline.config.augment import AugmentConfig
from pipeline.data.order.partition import Indices
from pipeline.data.order.randomness import Stream, random_below, random_uniforms

_ATTEMPTS = 10
_MAX_RATIO = 4 / 3

ImageSize = tuple[int, int]
"""Height and width."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CropBoxes:
    """A crop box in each of N images, inside it: int64 N."""

    tops: Indices
    lefts: Indices
    heights: Indices
    widths: Indices

    def as_rows(self) -> npt.NDArray[np.int32]:
        """N×4: top, left, height and width."""
        sides = (self.tops, self.lefts, self.heights, self.widths)
        return np.stack(sides, axis=1).astype(np.int32)


@dataclass(frozen=True, kw_only=True, slots=True)
class CropPolicy:
    """How one split is cropped."""

    place: Literal["middle", "middle_square", "random", "random_resized"]
    output_size: ImageSize
    """What every box is scaled to, if it has not this size already."""
    seed: int = 0
    min_area: float = 1.0

    @property
    def scales(self) -> bool:
        """Whether boxes may have another size than the output."""
        return self.place in ("middle_square", "random_resized")

    def boxes(self, samples: Indices, epoch: int, heights: Indices, widths: Indices) -> CropBoxes:
        """The boxes for N samples, whose images have these sizes: the same on any rank."""
        rows, columns = (np.full_like(heights, side) for side in self.output_size)
        is_random = np.zeros(len(samples), np.bool_)
        match self.place:
            case "middle":
                pass
            case "middle_square":
                rows = columns = np.minimum(heights, widths)
            case "random":  # 33×33 places for 224 of 256, as in the 2012 code; the paper says 32×32
                is_random[:] = True
            case "random_resized":
                rows, columns, is_random = self._draw_sizes(samples, epoch, heights, widths)
            case unknown:
                assert_never(unknown)
        tops, lefts = (heights - rows) // 2, (widths - columns) // 2
        if is_random.any():
            down = random_below(heights - rows + 1, self.seed, Stream.SHIFT_DOWN, epoch, samples)
            right = random_below(
                widths - columns + 1, self.seed, Stream.SHIFT_RIGHT, epoch, samples
            )
            tops, lefts = np.where(is_random, down, tops), np.where(is_random, right, lefts)
        return CropBoxes(tops=tops, lefts=lefts, heights=rows, widths=columns)

    def _draw_sizes(
        self, samples: Indices, epoch: int, heights: Indices, widths: Indices
    ) -> tuple[Indices, Indices, npt.NDArray[np.bool_]]:
        """Heights and widths of a random area and aspect ratio (Szegedy, arXiv 1409.4842).

        The rule is that of torchvision's RandomResizedCrop: up to ten draws of an area between
        `min_area` and all, uniform, and a ratio between 3/4 and 4/3, uniform in its logarithm; the
        first one that fits, else the nearest allowed ratio, in the middle of the image. Whether one
        fitted is returned too.
        """
        lots = random_uniforms(2 * _ATTEMPTS, self.seed, Stream.CROP_SHAPE, epoch, samples)
        shares, exponents = lots[:, :_ATTEMPTS], 2 * lots[:, _ATTEMPTS:] - 1
        areas = (heights * widths)[:, None] * (self.min_area + (1 - self.min_area) * shares)
        ratios = _MAX_RATIO**exponents
        columns = np.rint(np.sqrt(areas * ratios)).astype(np.int64)
        rows = np.rint(np.sqrt(areas / ratios)).astype(np.int64)
        fits = (columns > 0) & (columns <= widths[:, None])
        fits &= (rows > 0) & (rows <= heights[:, None])
        first, has_one = fits.argmax(axis=1)[:, None], np.asarray(fits.any(axis=1))
        nearest_rows = np.minimum(heights, np.rint(widths * _MAX_RATIO).astype(np.int64))
        nearest_columns = np.minimum(widths, np.rint(heights * _MAX_RATIO).astype(np.int64))
        rows = np.where(has_one, np.take_along_axis(rows, first, 1)[:, 0], nearest_rows)
        columns = np.where(has_one, np.take_along_axis(columns, first, 1)[:, 0], nearest_columns)
        return rows, columns, has_one


def training_crop_policy(
    config: AugmentConfig, image_size: ImageSize | None, seed: int
) -> CropPolicy:
    """How training images are cropped; `image_size` is None if the images differ in size.

    Raises `ValueError` if the images do not suit the crop.
    """
    return CropPolicy(
        place="middle" if config.crop_pixels is None else config.crop_place,
        output_size=input_size(config, image_size),
        seed=seed,
        min_area=config.crop_min_area,
    )


def evaluation_crop_policy(config: AugmentConfig, image_size: ImageSize | None) -> CropPolicy:
    """How images are cropped for evaluation: not at all, or to a square if they differ in size."""
    if image_size is not None:
        return CropPolicy(place="middle", output_size=image_size)
    return CropPolicy(place="middle_square", output_size=(config.evaluation_pixels,) * 2)


def input_size(config: AugmentConfig, image_size: ImageSize | None) -> ImageSize:
    """Height and width of what the network gets from images of `image_size` (None: of any).

    Raises `ValueError` if the images are too small for the crop or the shift, or differ in size
    where they must not.
    """
    crop = config.crop_pixels
    if image_size is None:
        if crop is None or not config.scales_crops:
            raise ValueError(
                "the images of the shard set differ in size: train with augment.crop_place "
                "random_resized and augment.crop_pixels, or convert the images with --size 256 "
                "(for recipes of CIFAR-10: --size 32)"
            )
        if crop > config.evaluation_pixels:
            raise ValueError(
                f"augment.crop_pixels is {crop}, more than augment.evaluation_pixels "
                f"{config.evaluation_pixels}: evaluation would have to enlarge its images; raise "
                "augment.evaluation_pixels"
            )
        return (crop, crop)
    smallest, size = min(image_size), f"{image_size[0]}×{image_size[1]}"
    if crop is not None and crop > smallest:
        raise ValueError(
            f"augment.crop_pixels is {crop}, and the images are {size}: convert the shard set with "
            "a larger --size"
        )
    if config.shift_pixels >= smallest:
        raise ValueError(
            f"augment.shift_pixels is {config.shift_pixels}; expected less than the size of the "
            f"images, which are {size}"
        )
    return image_size if crop is None else (crop, crop)
