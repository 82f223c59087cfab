"""From stored pixels to the network's input: fields of `augment`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, assert_never

from data_prep.shard_set.fields import above, at_least, at_most
from pipeline.config.marks import above_zero, given, one_of, only_with

CropPlace = Literal["random", "middle", "random_resized"]
Flip = Literal["none", "random", "alternating"]
Normalization = Literal["none", "mean_std", "mean_image"]
ComponentsOfColor = Literal["original", "shards"]

IMAGE_SIZES = "images"
"""The fact of a shard set that some fields need: whether its images are of one size."""
ONE_SIZE, SEVERAL_SIZES = "of one size", "of several sizes"

_ADDS_COLOR = only_with(above_zero("augment.color_noise"))


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """From stored pixels to the network's input, on the device."""

    shift_pixels: Annotated[int, at_least(0), only_with(one_of("augment.crop_pixels", None))] = 0
    """Random shift by up to this number of pixels each way, edges mirrored."""
    crop_pixels: Annotated[int | None, at_least(1)] = None
    """Train and evaluate on squares of this size; none: on the whole image."""
    crop_place: Annotated[CropPlace, only_with(given("augment.crop_pixels"))] = "random"
    """Which square of a training image, in evaluation always the middle one; or a random area at a
    random aspect ratio, scaled to a square (Szegedy, arXiv 1409.4842)."""
    crop_min_area: Annotated[
        float, above(0), at_most(1), only_with(one_of("augment.crop_place", "random_resized"))
    ] = 0.08
    """Smallest share of an image's area that a random area has."""
    evaluation_pixels: Annotated[
        int, at_least(1), only_with(one_of(IMAGE_SIZES, SEVERAL_SIZES))
    ] = 256
    """What the middle square of each image is scaled to in evaluation, before its middle
    `crop_pixels`, or ten views, are taken."""
    flip: Flip = "none"
    """Mirror images at random, or every image in every second epoch (Jordan, arXiv 2404.00498)."""
    normalize: Normalization = "mean_std"
    """Leave pixels in 0–255; subtract the train split's mean and divide by its deviation; or
    subtract the middle of its mean image (2012)."""
    color_noise: Annotated[float, at_least(0)] = 0.0
    """Size of random colour shifts along the components of RGB (0.1 in 2012; section 4.1), as a
    share of their deviations. Training images are then divided by 1 plus it, as the code does."""
    color_components: Annotated[ComponentsOfColor, _ADDS_COLOR] = "original"
    """The components that the 2012 code used, or those of the train split."""
    color_noise_until_epoch: Annotated[float | None, at_least(0), _ADDS_COLOR] = None
    """When colour noise, and the division with it, ends; none: never."""

    @property
    def subtracts_mean_image(self) -> bool:
        """Whether the mean image of the train split is needed."""
        match self.normalize:
            case "mean_image":
                return True
            case "none" | "mean_std":
                return False
            case unknown:
                assert_never(unknown)

    @property
    def scales_crops(self) -> bool:
        """Whether crops of any size are taken, and scaled to one."""
        match self.crop_place:
            case "random" | "middle":
                return False
            case "random_resized":
                return True
            case unknown:
                assert_never(unknown)
