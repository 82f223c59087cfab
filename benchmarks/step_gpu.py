"""The training step on one GPU, from uint8 images that are already in its memory.

Called by `benchmarks.step` where there is a GPU. Images a second of `alexnet_fast` at several batch
sizes, crop, flip and colour noise included, against eager PyTorch of the same network (grouped, in
channels-last, under autocast, from inputs that are ready); the kernels that take the time; and the
share of the arithmetic that the GPU's largest matrix products reach.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.measurement import spread
from benchmarks.rivals.blog_alexnet import plain_step
from pipeline.config import DistributedConfig
from pipeline.data.augment import cut, draw_windows
from pipeline.data.batch import to_device
from pipeline.data.color import ORIGINAL, draw_color_shifts
from pipeline.data.normalize import Normalizer
from pipeline.distributed import Place, connect
from pipeline.grid import build_grid
from pipeline.model import build_model
from pipeline.recipes import alexnet_fast
from pipeline.replica import Replica

BATCH_SIZES = (128, 512, 1024, 2048, 4096)
STEPS = 20
FLOPS_OF_IMAGE = 4.1356e9
"""Forward and backward without the gradient of the pixels."""

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def our_step(num_images: int, precision: Literal["bf16", "fp16"]) -> Callable[[], None]:
    config = dataclasses.replace(alexnet_fast(), precision=precision, global_batch_size=num_images)
    with connect(Place(), DistributedConfig()) as world:
        model = build_model(config.model, 1000, (224, 224))
        replica = Replica(model, config, world, build_grid(world, "fused", 60))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (num_images, 256, 256, 3), generator=generator, dtype=torch.uint8)
    images, keys = pixels.cuda(), torch.arange(num_images).cuda()
    labels = torch.randint(1000, (num_images,), generator=generator).cuda()
    normalizer = Normalizer(np.full(3, 120.0), np.ones(3), images.device)
    samples = np.arange(num_images)

    def step() -> None:
        windows = draw_windows(config.augment, (256, 256), 0, 0, samples)
        shifts = draw_color_shifts(ORIGINAL, 0.1, 0, 0, samples).astype(np.float32)
        inputs = normalizer(
            cut(images, windows), color_shifts=to_device(shifts, images.device), divisor=1.1
        )
        replica.add_gradients(inputs, keys, labels, step_samples=num_images, is_last=True)
        replica.update()

    return step


def eager_step(num_images: int, precision: Literal["bf16", "fp16"]) -> Callable[[], None]:
    images = 60 * torch.randn(num_images, 3, 227, 227, device="cuda")
    labels = torch.randint(1000, (num_images,), device="cuda")
    return plain_step(images, labels, groups=2, precision=_TYPES[precision])


def rates(step: Callable[[], None], num_images: int, rounds: int) -> list[float]:
    """Images a second of each round of `STEPS` steps, after one round to warm up."""
    found = []
    for _ in range(rounds + 1):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
        found.append(STEPS * num_images / (time.perf_counter() - begin))
    return found[1:]


def matmul_flops_per_second() -> float:
    """What the largest matrix products of this GPU reach in bf16."""
    size, count = 8192, 20
    one = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        one @ one
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(count):
        one @ one
    torch.cuda.synchronize()
    return count * 2 * size**3 / (time.perf_counter() - begin)


def kernels(step: Callable[[], None]) -> list[dict[str, Any]]:
    """The kernels of a step by the time they take, in milliseconds a step."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
    table = sorted(profiled.key_averages(), key=lambda row: -row.self_device_time_total)
    return [
        {"kernel": row.key[:90], "ms": round(row.self_device_time_total / 1000 / STEPS, 4)}
        for row in table[:25]
    ]


def figures(rounds: int) -> dict[str, Any]:
    """Everything; needs CUDA."""
    peak = matmul_flops_per_second()
    found: dict[str, Any] = {"matmul_tflops": round(peak / 1e12, 1)}
    for precision in ("bf16", "fp16"):
        for num_images in BATCH_SIZES:
            ours = rates(our_step(num_images, precision), num_images, rounds)
            eager = rates(eager_step(num_images, precision), num_images, rounds)
            torch.cuda.empty_cache()
            found[f"{precision}, batch {num_images}"] = {
                "ours": spread(ours, 0),
                "eager": spread(eager, 0),
                "ratio": spread([a / b for a, b in zip(ours, eager, strict=True)], 2),
                "share of the matmul rate": spread([r * FLOPS_OF_IMAGE / peak for r in ours]),
            }
    found["kernels at batch 1024, bf16"] = kernels(our_step(1024, "bf16"))
    return found
