"""The Triton kernel of crops on CPU tensors, by Triton's interpreter, against plain torch.

Run as a program with TRITON_INTERPRET=1: the variable has to be set before triton is imported.
"""

from __future__ import annotations

import numpy as np
import torch

from pipeline.data.augment import crops_cuda
from pipeline.data.augment.crops import CropWindows, take_crops
from pipeline.data.augment.normalize import Normalizer

CPU = torch.device("cpu")


def main() -> None:
    rng = np.random.default_rng(0)
    for shape in ((5, 30, 40, 3), (5, 45, 40)):  # pixels, and planes
        check(rng, torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8)))


def check(rng: np.random.Generator, images: torch.Tensor) -> None:
    count, size = 7, (22, 17)
    crop_windows = CropWindows(
        rows=rng.integers(0, 5, count),
        tops=rng.integers(0, 30 - size[0] + 1, count),
        lefts=rng.integers(0, 40 - size[1] + 1, count),
        size=size,
    )
    flips = rng.random(count) < 0.5
    found = crops_cuda.take_crops(images, crop_windows, flips)
    assert torch.equal(found, take_crops(images, crop_windows, flips))
    colors = torch.from_numpy(rng.normal(0, 10, (count, 3))).float()
    std = np.array([60.0, 50.0, 40.0])
    for mean in (np.array([120.0, 110.0, 100.0]), rng.uniform(90, 140, (*size, 3))):
        normalizer = Normalizer(mean, std, CPU)
        for shifts in (None, colors):
            expected = normalizer(
                take_crops(images, crop_windows, flips), color_shifts=shifts, divisor=1.1
            )
            found = crops_cuda.normalize_crops(
                images,
                crop_windows,
                flips,
                shift=torch.from_numpy(-mean / std).float(),
                scale=torch.from_numpy(1 / std).float(),
                color_shifts=shifts,
                divisor=1.1,
            )
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            assert found.is_contiguous(memory_format=torch.channels_last)
    nothing = np.zeros(0, np.int64)
    no_windows = CropWindows(rows=nothing, tops=nothing, lefts=nothing, size=size)
    empty = crops_cuda.take_crops(images, no_windows, flips[:0])
    assert empty.shape == (0, *size, 3)


if __name__ == "__main__":
    main()
