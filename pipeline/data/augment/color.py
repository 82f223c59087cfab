"""Colour noise along the principal components of RGB (2012, section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import numpy as np
import numpy.typing as npt

from data_prep.shard_set.manifest import Statistics
from pipeline.config.augment import ComponentsOfColor
from pipeline.data.order.partition import Indices
from pipeline.data.order.randomness import Stream, random_normals


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
