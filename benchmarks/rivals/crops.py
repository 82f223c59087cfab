"""The augmentation of the rivals that decode with Pillow, after torchvision's published rules.

All draws are of the module `random`, which torch's DataLoader seeds in each worker.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.rivals.rounds import CROP_PIXELS, Setting

Pixels = npt.NDArray[np.uint8]

_SCALE = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)
_TRIES = 10


def draw_resized_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what a random-resized-crop takes of an image.

    As `torchvision.transforms.RandomResizedCrop.get_params`: ten tries to find a box of a random
    share of the area (0.08 to 1) and a random ratio of sides (3/4 to 4/3, evenly on a logarithmic
    scale) inside the image; then the largest middle box of an allowed ratio.
    """
    for _ in range(_TRIES):
        area = width * height * random.uniform(*_SCALE)
        ratio = math.exp(random.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            left, top = random.randint(0, width - columns), random.randint(0, height - rows)
            return left, top, left + columns, top + rows
    ratio = min(max(width / height, _RATIO[0]), _RATIO[1])
    columns, rows = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - columns) // 2, (height - rows) // 2
    return left, top, left + columns, top + rows


def draw_box(width: int, height: int, setting: Setting) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random crop, which `original` then scales."""
    if setting == "original":
        return draw_resized_box(width, height)
    left, top = (random.randint(0, side - CROP_PIXELS) for side in (width, height))
    return left, top, left + CROP_PIXELS, top + CROP_PIXELS


def open_rgb(file: Path | IO[bytes]) -> Image.Image:
    """Decode an image file."""
    with Image.open(file) as image:
        return image.convert("RGB")


def augment(image: Image.Image, setting: Setting) -> Pixels:
    """Crop and flip at random, uint8 224×224×3."""
    if setting == "original":
        box = draw_resized_box(*image.size)
        image = image.resize((CROP_PIXELS,) * 2, Image.Resampling.BILINEAR, box=box)
        return flip(np.asarray(image))
    return crop(np.asarray(image))


def crop(pixels: Pixels) -> Pixels:
    """A random 224×224 of the pixels, uint8 H×W×3, flipped at random."""
    top, left = (random.randint(0, side - CROP_PIXELS) for side in pixels.shape[:2])
    return flip(pixels[top : top + CROP_PIXELS, left : left + CROP_PIXELS])


def flip(pixels: Pixels) -> Pixels:
    """The pixels, uint8 H×W×3, mirrored left to right half of the times; contiguous."""
    return np.ascontiguousarray(pixels[:, ::-1] if random.random() < 0.5 else pixels)


def middle_square(image: Image.Image, size: int) -> Image.Image:
    """The middle square scaled to size×size: short side to `size`, then a centre crop."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box)
