"""The Triton kernel of crops on CPU tensors, by Triton's interpreter, against the host's path.

Run as a program with TRITON_INTERPRET=1: the variable has to be set before triton is imported.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from triton.runtime import interpreter

from pipeline.data.augment import crops_cuda
from pipeline.data.augment.crops import CropWindows, take_crops
from pipeline.data.augment.normalize import Normalizer

CPU = torch.device("cpu")


def main() -> None:
    round_as_a_gpu()
    rng = np.random.default_rng(0)
    for shape in ((5, 30, 40, 3), (5, 45, 40)):  # pixels, and planes
        images = torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))
        for size in ((22, 17), (30, 40), (1, 1)):
            check(rng, images, size)


def round_as_a_gpu() -> None:
    """Once where a GPU rounds once, and to the nearest bfloat16: the interpreter does neither."""
    convert = interpreter._convert_float

    def fma(_: object, x: Any, y: Any, z: Any) -> Any:
        exact = x.data.astype(np.float64) * y.data + z.data  # the product has 32 bits
        return interpreter.TensorHandle(exact.astype(np.float32), z.dtype.scalar)

    def rounded(data: Any, source: Any, target: Any, mode: Any) -> Any:
        if target != interpreter.tl.bfloat16:
            return convert(data, source, target, mode)
        return torch.from_numpy(data).bfloat16().view(torch.uint16).numpy()

    interpreter.InterpreterBuilder.create_fma = fma
    interpreter._convert_float = rounded


def check(rng: np.random.Generator, images: torch.Tensor, size: tuple[int, int]) -> None:
    """Bit for bit what the host does."""
    count = 7
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
    means = np.array([120.0, 110.0, 100.0]), rng.uniform(90, 140, (*size, 3))
    dtypes = torch.float32, torch.bfloat16, torch.float16
    for mean, shifts, dtype in itertools.product(means, (None, colors), dtypes):
        normalizer = Normalizer(mean, std, CPU)
        expected = normalizer.take(
            *(images, crop_windows, flips), color_shifts=shifts, divisor=1.1, dtype=dtype
        )
        shift, scale = normalizer._divided(1.1)
        found = crops_cuda.normalize_crops(
            images,
            crop_windows,
            flips,
            shift=shift,
            scale=scale,
            color_shifts=None if shifts is None else shifts * scale,
            dtype=dtype,
        )
        assert found.dtype == expected.dtype == dtype
        if rounds_once():
            assert torch.equal(found, expected)
        torch.testing.assert_close(found, expected)
        assert found.is_contiguous(memory_format=torch.channels_last)
    nothing = np.zeros(0, np.int64)
    no_windows = CropWindows(rows=nothing, tops=nothing, lefts=nothing, size=size)
    empty = crops_cuda.take_crops(images, no_windows, flips[:0])
    assert empty.shape == (0, *size, 3)
    windows = torch.zeros((2, 4), dtype=torch.int32)
    torch.library.opcheck(
        crops_cuda._crops,
        (images, windows, *size, shift, scale, None, torch.bfloat16),
        test_utils=("test_schema", "test_faketensor"),
    )


def rounds_once() -> bool:
    """Whether this processor's `addcmul` is fused."""
    return torch.backends.cpu.get_cpu_capability() != "DEFAULT"


if __name__ == "__main__":
    main()
