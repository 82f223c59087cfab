"""Colour statistics, summed exactly: any order and any number of workers give the same bits."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from data_prep.shard_set.manifest import Statistics
from data_prep.shard_set.pixels import Pixels

_DECIMALS = 9
"""Of eigenvalues and vectors: the solver's last bits differ between machines."""

_CHUNK_PIXELS = 1 << 13
"""Pixels that are summed at once, as float64: it holds these sums exactly, and multiplies many
times faster than integers. Few enough for the cache, and for BLAS to use one thread a worker."""


@dataclass(slots=True)
class PixelSums:
    """Integer sums over the pixels of the images that were added."""

    num_images: int = 0
    num_pixels: int = 0
    sums: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))
    """Of the values, by channel."""
    products: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 3), np.int64))
    """Of the products of two channels."""
    image_sum: npt.NDArray[np.int64] | None = None
    """Sum of the images, H×W×3; meaningless if they differ in size."""

    def add(self, pixels: Pixels) -> None:
        """Add an image, uint8 H×W×3."""
        self.num_images += 1
        self.num_pixels += pixels.size // 3
        rows = pixels.reshape(-1, 3)
        for start in range(0, len(rows), _CHUNK_PIXELS):
            channels = rows[start : start + _CHUNK_PIXELS].T.astype(np.float64, order="C")
            self.sums += channels.sum(axis=1).astype(np.int64)
            # Six products of vectors take half the time of one of such narrow matrices.
            for i, j in itertools.combinations_with_replacement(range(3), 2):
                product = int(channels[i] @ channels[j])
                for place in {(i, j), (j, i)}:
                    self.products[place] += product
        self._add_image(pixels)

    def merge(self, other: PixelSums) -> None:
        """Add all of `other`."""
        self.num_images += other.num_images
        self.num_pixels += other.num_pixels
        self.sums += other.sums
        self.products += other.products
        if other.image_sum is not None:
            self._add_image(other.image_sum)

    def _add_image(self, image: npt.NDArray[np.uint8] | npt.NDArray[np.int64]) -> None:
        if self.image_sum is None:
            self.image_sum = image.astype(np.int64)
        elif self.image_sum.shape == image.shape:
            self.image_sum += image


def colour_mean(sums: PixelSums) -> tuple[float, float, float]:
    """Mean over all pixels, by channel, 0-255."""
    red, green, blue = (int(value) / sums.num_pixels for value in sums.sums)
    return red, green, blue


def colour_covariance(sums: PixelSums) -> npt.NDArray[np.float64]:
    """Covariance of the channels over all pixels, 3×3.

    Exact integers up to one last division: the usual difference of large floats loses digits.
    """
    n, first, second = sums.num_pixels, sums.sums.tolist(), sums.products.tolist()
    return np.array(
        [[(n * second[i][j] - first[i] * first[j]) / n**2 for j in range(3)] for i in range(3)]
    )


def colour_std(sums: PixelSums) -> tuple[float, float, float]:
    """Standard deviation over all pixels, by channel."""
    red, green, blue = (math.sqrt(value) for value in np.diag(colour_covariance(sums)))
    return red, green, blue


def principal_components(
    sums: PixelSums,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Standard deviations, ascending, and the components as columns, 3×3.

    A component's sign is free; here its largest entry is positive.
    """
    variances, vectors = np.linalg.eigh(colour_covariance(sums))
    largest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.sign(vectors[largest, range(3)])
    stds = np.sqrt(np.maximum(variances, 0))  # rounding may leave a zero just below zero
    return stds.round(_DECIMALS), vectors.round(_DECIMALS)


def mean_image(sums: PixelSums) -> npt.NDArray[np.float32]:
    """Mean of the images, which must have one size, float32 H×W×3."""
    assert sums.image_sum is not None
    return (sums.image_sum / sums.num_images).astype(np.float32)


def summarize(sums: PixelSums) -> Statistics:
    """All statistics but the mean image."""
    stds, vectors = principal_components(sums)
    return Statistics(
        num_images=sums.num_images,
        mean=colour_mean(sums),
        std=colour_std(sums),
        pca_stds=tuple(stds.tolist()),
        pca_vectors=tuple(tuple(row) for row in vectors.tolist()),
    )
