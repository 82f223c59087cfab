"""Where each image is cut and whether it is mirrored: the draws, and one gather on the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pipeline.config import AugmentConfig
from pipeline.data.batch import to_device
from pipeline.data.partition import Indices
from pipeline.data.randomness import Stream, random_below, random_bits


@dataclass(frozen=True, kw_only=True, slots=True)
class Windows:
    """What is taken from each of N images: a window of one size, at N places."""

    height: int
    width: int
    tops: npt.NDArray[np.int64]
    """First row of the window; below 0 and beyond the image its mirrored edge is meant."""
    lefts: npt.NDArray[np.int64]
    """First column of the window, likewise."""
    flips: npt.NDArray[np.bool_]
    """Whether the window is then mirrored left to right."""


def draw_windows(
    config: AugmentConfig, image_size: tuple[int, int], seed: int, epoch: int, samples: Indices
) -> Windows:
    """The windows for `samples` in `epoch`, of images height × width: the same on any rank.

    With `crop_pixels` all (height − crop + 1) × (width − crop + 1) places are equally likely: 33×33
    for 224 of 256, as in the 2012 code (the paper counts 32×32).
    """
    height, width = input_size(config, image_size)
    spare_rows, spare_columns = image_size[0] - height, image_size[1] - width
    if config.crop_place == "middle":
        tops = np.full(len(samples), spare_rows // 2)
        lefts = np.full(len(samples), spare_columns // 2)
    else:
        shift = config.shift_pixels
        rows, columns = spare_rows + 2 * shift + 1, spare_columns + 2 * shift + 1
        tops = random_below(rows, seed, Stream.SHIFT_DOWN, epoch, samples) - shift
        lefts = random_below(columns, seed, Stream.SHIFT_RIGHT, epoch, samples) - shift
    flips = _flips(config, seed, epoch, samples)
    return Windows(height=height, width=width, tops=tops, lefts=lefts, flips=flips)


def input_size(config: AugmentConfig, image_size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of what the network gets from images of `image_size`.

    Raises `ValueError` if the images are too small for the crop or the shift.
    """
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


def cut(images: torch.Tensor, windows: Windows) -> torch.Tensor:
    """Take the windows: uint8 N×H×W×3 in, N×height×width×3 out.

    One gather of whole pixels: mirrored edges are in the index, so that no image is padded.
    """
    count, height, width, channels = images.shape
    rows = _mirrored(windows.tops[:, None] + np.arange(windows.height), height)
    lines = np.arange(count)[:, None] * height + rows
    steps = np.where(
        windows.flips[:, None], np.arange(windows.width)[::-1], np.arange(windows.width)
    )
    columns = _mirrored(windows.lefts[:, None] + steps, width)
    starts, offsets = (to_device(index, images.device) for index in (lines * width, columns))
    pixels = starts[:, :, None] + offsets[:, None, :]
    taken = images.reshape(-1, channels).index_select(0, pixels.flatten())
    return taken.view(count, windows.height, windows.width, channels)


def _mirrored(places: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """Places outside [0, size), by less than `size`, reflected at its first or last pixel."""
    last = size - 1
    return np.asarray(last - np.abs(last - np.abs(places)), np.int64)
