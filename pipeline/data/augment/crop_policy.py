"""Crop policies: which box of a stored image is read, and its output size. No pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, assert_never

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


class CropPolicy(Protocol):
    """How one split is cropped."""

    @property
    def output_size(self) -> ImageSize:
        """What every box is scaled to, if it has not this size already."""

    def boxes(self, samples: Indices, epoch: int, heights: Indices, widths: Indices) -> CropBoxes:
        """The boxes for N samples, whose images have these sizes: the same on any rank."""


def training_crop_policy(
    config: AugmentConfig, image_size: ImageSize | None, seed: int
) -> CropPolicy:
    """How training images are taken; `image_size` is None if the images differ in size.

    Raises `ValueError` if the images do not suit the crop.
    """
    output_size = input_size(config, image_size)
    if config.crop_pixels is None:
        return _WholeImage(output_size)
    match config.crop_place:
        case "middle":
            return _CenterCrop(output_size)
        case "random":
            return _RandomCrop(output_size, seed)
        case "random_resized":
            return _RandomResizedCrop(output_size, seed, config.crop_min_area)
        case unknown:
            assert_never(unknown)


def evaluation_crop_policy(config: AugmentConfig, image_size: ImageSize | None) -> CropPolicy:
    """How images are taken for evaluation: whole, or the middle square if they differ in size."""
    if image_size is not None:
        return _WholeImage(image_size)
    return _CenterSquare((config.evaluation_pixels, config.evaluation_pixels))


def input_size(config: AugmentConfig, image_size: ImageSize | None) -> ImageSize:
    """Height and width of what the network gets from images of `image_size` (None: of any).

    Raises `ValueError` if the images are too small for the crop or the shift, or differ in size
    where that cannot be.
    """
    if image_size is None:
        _check_images_may_differ(config)
        assert config.crop_pixels is not None
        return (config.crop_pixels,) * 2
    smallest = min(image_size)
    if config.crop_pixels is not None and config.crop_pixels > smallest:
        raise ValueError(
            f"augment.crop_pixels is {config.crop_pixels}, and the images are "
            f"{image_size[0]}×{image_size[1]}: convert the shard set with a larger --size"
        )
    if config.shift_pixels >= smallest:
        raise ValueError(
            f"augment.shift_pixels is {config.shift_pixels}; expected less than the size of the "
            f"images, which are {image_size[0]}×{image_size[1]}"
        )
    return image_size if config.crop_pixels is None else (config.crop_pixels,) * 2


def _check_images_may_differ(config: AugmentConfig) -> None:
    if config.crop_pixels is None or not config.scales_crops:
        raise ValueError(
            "the images of the shard set differ in size: train with augment.crop_place "
            "random_resized and augment.crop_pixels, or convert the images with --size 256 (for "
            "recipes of CIFAR-10: --size 32)"
        )
    if config.crop_pixels > config.evaluation_pixels:
        raise ValueError(
            f"augment.crop_pixels is {config.crop_pixels}, more than augment.evaluation_pixels "
            f"{config.evaluation_pixels}: evaluation would have to enlarge its images; raise the "
            "second"
        )


@dataclass(frozen=True, slots=True)
class _WholeImage:
    """Images of one size, as they are."""

    output_size: ImageSize

    def boxes(self, samples: Indices, _epoch: int, heights: Indices, widths: Indices) -> CropBoxes:
        zeros = np.zeros(len(samples), np.int64)
        return CropBoxes(tops=zeros, lefts=zeros, heights=heights, widths=widths)


@dataclass(frozen=True, slots=True)
class _CenterCrop:
    """The middle of images of one size."""

    output_size: ImageSize

    def boxes(self, _samples: Indices, _epoch: int, heights: Indices, widths: Indices) -> CropBoxes:
        rows, columns = (np.full_like(heights, side) for side in self.output_size)
        tops, lefts = (heights - rows) // 2, (widths - columns) // 2
        return CropBoxes(tops=tops, lefts=lefts, heights=rows, widths=columns)


@dataclass(frozen=True, slots=True)
class _CenterSquare:
    """The largest square in the middle, scaled: as short side to `output_size`, then its middle."""

    output_size: ImageSize

    def boxes(self, _samples: Indices, _epoch: int, heights: Indices, widths: Indices) -> CropBoxes:
        sides = np.minimum(heights, widths)
        tops, lefts = (heights - sides) // 2, (widths - sides) // 2
        return CropBoxes(tops=tops, lefts=lefts, heights=sides, widths=sides)


@dataclass(frozen=True, slots=True)
class _RandomCrop:
    """Any place is equally likely: 33×33 of them for 224 of 256, as in the 2012 code.

    (The paper counts 32×32.)
    """

    output_size: ImageSize
    seed: int

    def boxes(self, samples: Indices, epoch: int, heights: Indices, widths: Indices) -> CropBoxes:
        rows, columns = (np.full_like(heights, side) for side in self.output_size)
        return _random_boxes(self.seed, samples, epoch, (heights, widths), (rows, columns))


@dataclass(frozen=True, slots=True)
class _RandomResizedCrop:
    """A random share of the area at a random aspect ratio, scaled (Szegedy, arXiv 1409.4842).

    The rule is that of torchvision's RandomResizedCrop: up to ten draws of an area between
    `min_area` and all, uniform, and a ratio between 3/4 and 4/3, uniform in its logarithm; the
    first one that fits, else the middle of the image at the nearest allowed ratio.
    """

    output_size: ImageSize
    seed: int
    min_area: float

    def boxes(self, samples: Indices, epoch: int, heights: Indices, widths: Indices) -> CropBoxes:
        lots = random_uniforms(2 * _ATTEMPTS, self.seed, Stream.CROP_SHAPE, epoch, samples)
        shares, exponents = lots[:, :_ATTEMPTS], 2 * lots[:, _ATTEMPTS:] - 1
        areas = (heights * widths)[:, None] * (self.min_area + (1 - self.min_area) * shares)
        ratios = _MAX_RATIO**exponents
        columns = np.rint(np.sqrt(areas * ratios)).astype(np.int64)
        rows = np.rint(np.sqrt(areas / ratios)).astype(np.int64)
        fits = (columns > 0) & (columns <= widths[:, None])
        fits &= (rows > 0) & (rows <= heights[:, None])
        first = fits.argmax(axis=1)[:, None]
        rows, columns = (np.take_along_axis(sides, first, 1)[:, 0] for sides in (rows, columns))
        has_one: npt.NDArray[np.bool_] = np.asarray(fits.any(axis=1))
        limits = heights, widths
        drawn = _random_boxes(self.seed, samples, epoch, limits, (rows, columns), where=has_one)
        if has_one.all():
            return drawn
        middle = _nearest_ratio(heights, widths)
        return CropBoxes(
            **{
                name: np.where(has_one, getattr(drawn, name), getattr(middle, name))
                for name in CropBoxes.__slots__
            }
        )


def _nearest_ratio(heights: Indices, widths: Indices) -> CropBoxes:
    """The middle of each image: as much of it as an allowed aspect ratio takes in."""
    columns = np.minimum(widths, np.rint(heights * _MAX_RATIO).astype(np.int64))
    rows = np.minimum(heights, np.rint(widths * _MAX_RATIO).astype(np.int64))
    tops, lefts = (heights - rows) // 2, (widths - columns) // 2
    return CropBoxes(tops=tops, lefts=lefts, heights=rows, widths=columns)


def _random_boxes(
    seed: int,
    samples: Indices,
    epoch: int,
    image_sides: tuple[Indices, Indices],
    sides: tuple[Indices, Indices],
    where: npt.NDArray[np.bool_] | bool = True,
) -> CropBoxes:
    """Boxes of these sides at random places; `where` they fit, elsewhere of no meaning."""
    streams = Stream.SHIFT_DOWN, Stream.SHIFT_RIGHT
    tops, lefts = (
        random_below(np.where(where, most - side + 1, 1), seed, stream, epoch, samples)
        for most, side, stream in zip(image_sides, sides, streams, strict=True)
    )
    return CropBoxes(tops=tops, lefts=lefts, heights=sides[0], widths=sides[1])
