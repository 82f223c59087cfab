"""How long the device takes, by its own events, and the two rates that limit everything on it."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable

import torch

from benchmarks.gpu.scale import Scale, milliseconds_between


def milliseconds(scale: Scale, *parts: Callable[[], object]) -> list[list[float]]:
    """The device's time for each of the parts, run one after the other: a list of repeats for each.

    They queue up behind matrix products that take longer than the host does to launch them, so that
    waiting for launches is not counted; and those leave nothing of the parts in the GPU's caches.
    """
    matrix = _random_matrix(scale, torch.bfloat16)
    found: list[list[float]] = [[] for _ in parts]
    for number in range(scale.warm_up + scale.repeats):
        for _ in range(scale.num_products):
            matrix @ matrix
        marks = [scale.mark()]
        for part in parts:
            part()
            marks.append(scale.mark())
        scale.synchronize()
        if number >= scale.warm_up:
            for times, (begin, end) in zip(found, itertools.pairwise(marks), strict=True):
                times.append(milliseconds_between(begin, end))
    return found


def _random_matrix(scale: Scale, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(scale.matrix_size, scale.matrix_size, device=scale.device, dtype=dtype)


def matmul_flops_per_second(scale: Scale, dtype: torch.dtype) -> float:
    """What the largest matrix products of this device reach."""
    matrix = _random_matrix(scale, dtype)
    (times,) = milliseconds(scale, lambda: matrix @ matrix)
    return 2 * scale.matrix_size**3 / statistics.median(times) * 1000


def copied_bytes_per_second(scale: Scale) -> float:
    """What a copy within the device's memory reaches, read and written bytes together."""
    source = torch.zeros(scale.copied_bytes, dtype=torch.uint8, device=scale.device)
    target = torch.empty_like(source)
    (times,) = milliseconds(scale, lambda: target.copy_(source))
    return 2 * source.nbytes / statistics.median(times) * 1000


def copied_crops_per_second(scale: Scale) -> float:
    """Crops of 224×224 from the host's pinned memory to the device."""
    shape = (scale.train_batch, 224, 224, 3)
    crops = torch.zeros(shape, dtype=torch.uint8, pin_memory=scale.kind == "cuda")
    target = torch.empty_like(crops, device=scale.device)
    (times,) = milliseconds(scale, lambda: target.copy_(crops, non_blocking=True))
    return scale.train_batch / statistics.median(times) * 1000
