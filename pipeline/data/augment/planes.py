"""Images as planes of luma and of halved chroma, which become pixels on the device.

The layout is that of `data_prep.shard_set.yuv`: an image of H×W pixels is uint8 (3H/2)×W. A value
of chroma is that of 2×2 pixels, so windows are cut at even places around the crops, and the crops
are taken where the planes are converted.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from data_prep.shard_set.yuv import chroma_terms
from pipeline.data.augment.crop_policy import CropBoxes, CropPolicy, ImageSize


def cut_size(crop_policy: CropPolicy, image_size: ImageSize) -> ImageSize:
    """Height and width, both even, of the windows that hold the crops.

    Raises `ValueError` if crops are scaled to an odd size.
    """
    height, width = crop_policy.output_size
    if not crop_policy.scales:
        return min(image_size[0], (height | 1) + 1), min(image_size[1], (width | 1) + 1)
    if height % 2 or width % 2:
        raise ValueError(
            f"augment.crop_pixels is {height}; expected an even number, as the images are of "
            "encoding yuv420, whose planes are scaled"
        )
    return height, width


def cut_windows(
    crop_policy: CropPolicy, boxes: CropBoxes, image_size: ImageSize
) -> npt.NDArray[np.int32]:
    """The windows around N crops, N×4: top, left, height and width."""
    rows = boxes.as_rows()
    if not crop_policy.scales:
        size = cut_size(crop_policy, image_size)
        rows[:, :2] = np.minimum(rows[:, :2] & ~1, np.subtract(image_size, size))
        rows[:, 2:] = size
    return rows


def is_planar(images: torch.Tensor) -> bool:
    """Whether they are planes M×(3H/2)×W, and not pixels M×H×W×3."""
    return images.dim() == 3


def size_of(images: torch.Tensor) -> ImageSize:
    """Height and width of images in memory, of either kind."""
    rows, width = images.shape[1:3]
    return 2 * rows // 3 if is_planar(images) else rows, width


def to_rgb(planes: torch.Tensor) -> torch.Tensor:
    """uint8 N×(3H/2)×W to uint8 N×H×W×3, with the numbers of libjpeg's conversion."""
    count, (height, width) = len(planes), size_of(planes)
    chroma = planes[:, height:].reshape(count, 2, height // 2, width // 2).transpose(0, 1).int()
    luma = planes[:, :height].reshape(count, height // 2, 2, width).short()
    pixels = planes.new_empty((count, height // 2, 2, width, 3))
    for channel, terms in enumerate(chroma_terms(chroma)):
        wide = terms.short().repeat_interleave(2, 2)[:, :, None]
        pixels[..., channel] = (luma + wide).clamp_(0, 255)
    return pixels.view(count, height, width, 3)
