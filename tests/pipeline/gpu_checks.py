"""What is to hold on a GPU. `test_on_gpus.py` runs it, and so does `python -m benchmarks.gpu`.

It needs no pytest: where a GPU is lent for minutes there may be none. All of it but `ON_GPUS_ALONE`
can run on a CPU, too.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import subprocess
from collections.abc import Callable, Mapping
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch

from data_prep.shard_set.manifest import Statistics
from pipeline.config.augment import AugmentConfig
from pipeline.data.augment import crops
from pipeline.data.augment.crops import CropWindows
from pipeline.data.augment.normalize import Normalizer
from pipeline.data.augment.preprocess import Augmenter, Viewer
from pipeline.data.batches.loader import Batch
from pipeline.data.batches.resident import fill
from pipeline.model.response_norm import Norm, normalize_and_pool, normalize_and_pool_plain

Check = Callable[[], None]

ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2e-6}

_SHAPES = ((96, 2, 55), (256, 2, 27), (256, 1, 13), (5, 1, 7))
"""Channels, columns, height and width."""
_NORMS = tuple(
    dict.fromkeys(
        (((96, 2, 55), False), ((256, 2, 27), True), *itertools.product(_SHAPES, (True, False)))
    )
)
"""Shapes, and whether ReLU comes first: those of the 2012 code, then the others."""

_UNIT = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
STATISTICS = Statistics(
    num_images=1, mean=(1, 1, 1), std=(1, 1, 1), pca_stds=(1, 1, 1), pca_vectors=_UNIT
)
_RANDOM = np.random.default_rng(5)
IMAGES = torch.from_numpy(_RANDOM.integers(0, 256, (6, 20, 24, 3), dtype=np.uint8))
PLANES = torch.from_numpy(_RANDOM.integers(0, 256, (6, 30, 24), dtype=np.uint8))
CROP_WINDOWS = CropWindows(
    rows=np.array([5, 0, 0, 3]),
    tops=np.array([0, 4, 2, 1]),
    lefts=np.array([8, 0, 3, 2]),
    size=(16, 16),
)


def checks(device: torch.device) -> dict[str, Check]:
    """All that `device` can take, by name: the most important first, as time may end."""
    found = dict(ON_GPUS_ALONE) if device.type == "cuda" else {}
    stored = {"pixels": IMAGES, "planes": PLANES}
    for (kind, images), dtype, noise in itertools.product(stored.items(), ROUNDING, (0.0, 0.1)):
        name = f"crops of {kind} in {dtype}, color_noise={noise}"
        found[name] = functools.partial(check_augmentation, device, images, dtype, noise)
    for (kind, images), has_compiler in itertools.product(stored.items(), (True, False)):
        name = f"views of {kind}, has_compiler={has_compiler}"
        found[name] = functools.partial(check_views, device, images, has_compiler)
    for dtype, (shape, relu_first) in itertools.product(ROUNDING, _NORMS):
        name = f"response norm of {shape} in {dtype}, relu_first={relu_first}"
        found[name] = functools.partial(check_norm, device, dtype, relu_first, *shape)
    return found


def check_norm(
    device: torch.device,
    dtype: torch.dtype,
    relu_first: bool,
    channels: int,
    num_columns: int,
    size: int,
) -> None:
    """The kernels do what the definition says."""
    x = 30 * torch.randn(2, channels, size, size, device=device)
    x = x.to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    exact = x.detach().double().requires_grad_()
    norm = Norm(num_columns, relu_first, 2e-5)
    pooled = normalize_and_pool(x, norm)
    expected = normalize_and_pool_plain(exact, norm)
    torch.testing.assert_close(pooled.double(), expected, rtol=ROUNDING[dtype], atol=1e-5)

    gradient = torch.randn_like(pooled)
    (found,) = torch.autograd.grad(pooled, x, gradient)
    (exact_gradient,) = torch.autograd.grad(expected, exact, gradient.double())
    is_off = (found.double() - exact_gradient).abs() > 2e-5 + ROUNDING[dtype] * exact_gradient.abs()
    # Where two elements of a window are equal but for rounding, the gradient may go to either.
    assert is_off.double().mean() < 1e-4


def check_augmentation(
    device: torch.device, images: torch.Tensor, dtype: torch.dtype, color_noise: float
) -> None:
    """It is that of the CPU."""
    config = AugmentConfig(crop_pixels=16, flip="random", color_noise=color_noise)
    random = np.random.default_rng(6)
    mean, std = random.uniform(90, 140, (16, 16, 3)), np.array([60.0, 50.0, 40.0])
    found, expected = (
        Augmenter(config, 0, STATISTICS, Normalizer(mean, std, one), dtype)(
            images.to(one), np.arange(4), 1, CROP_WINDOWS
        ).cpu()
        for one in (device, torch.device("cpu"))
    )
    if torch.backends.cpu.get_cpu_capability() != "DEFAULT":  # its `addcmul` rounds once
        assert torch.equal(found, expected)
    torch.testing.assert_close(found, expected)


def check_views(device: torch.device, images: torch.Tensor, has_compiler: bool) -> None:
    """They are those of the CPU, by the kernel and without it."""
    config, mean = AugmentConfig(crop_pixels=16), np.array([120.0, 110.0, 100.0])

    def views(one: torch.device) -> list[torch.Tensor]:
        normalizer = Normalizer(mean, np.full(3, 55.0), one)
        return [view.cpu() for view in Viewer(config, 10, (20, 24), normalizer)(images.to(one))]

    with mock.patch.object(crops, "_HAS_COMPILER", has_compiler):
        found = views(device)
    torch.testing.assert_close(found, views(torch.device("cpu")))


def check_graph() -> None:
    """A CUDA graph can hold the kernels of the response norm."""
    x = torch.randn(4, 96, 55, 55, device="cuda", dtype=torch.bfloat16)
    x = x.to(memory_format=torch.channels_last).requires_grad_()

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        pooled = normalize_and_pool(x, Norm(2, False, 2e-5))
        (gradient,) = torch.autograd.grad(pooled, x, torch.ones_like(pooled))
        return pooled, gradient

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        expected = step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def check_driver() -> None:
    """The driver knows the GPU of torch by the name that metrics give it."""
    from prometheus_client import CollectorRegistry

    from pipeline.metrics.gpu import GpuCollector

    uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    listed = subprocess.run(["nvidia-smi", "-L"], check=True, capture_output=True, text=True)
    assert uuid in listed.stdout
    registry = CollectorRegistry()
    registry.register(GpuCollector(uuid, rank=0, local_rank=0))
    samples = [sample for family in registry.collect() for sample in family.samples]
    (index,) = (one.labels["gpu_index"] for one in samples if one.name == "alexnet_gpu_info")
    assert index.isdecimal()
    assert all(sample.value >= 0 for sample in samples)


def check_filling() -> None:
    """The GPU gets what the loader gives, from buffers that are used again."""
    pixels: npt.NDArray[np.uint8] = np.random.default_rng(0).integers(
        0, 256, (50, 4, 6, 3), np.uint8
    )
    images = torch.empty(pixels.shape, dtype=torch.uint8, device="cuda")
    batches = [
        Batch(
            images=torch.from_numpy(pixels[start : start + 8]).pin_memory(),
            labels=torch.arange(start, min(start + 8, 50)),
            samples=np.arange(start, min(start + 8, 50)),
            num_valid=min(8, 50 - start),
        )
        for start in range(0, 50, 8)
    ]
    assert fill(images, batches, lambda *_: None).tolist() == list(range(50))
    assert torch.equal(images.cpu(), torch.from_numpy(pixels))
    assert all(batch.copied is not None for batch in batches)


def check_large_memory() -> None:
    """Images that begin behind more than 2^31 bytes are cut as those of a small tensor are."""
    planes = torch.empty((24_000, 384, 256), dtype=torch.uint8, device="cuda")
    last = planes[-len(CROP_WINDOWS.rows) :]
    last.copy_(torch.randint(256, last.shape, dtype=torch.uint8))
    assert last.data_ptr() - planes.data_ptr() > 1 << 31
    rows = np.arange(len(last))
    flips = rows % 2 == 1
    windows = dataclasses.replace(CROP_WINDOWS, rows=rows, size=(224, 224))
    expected = crops.take_crops(last.clone(), windows, flips)
    windows = dataclasses.replace(windows, rows=rows + len(planes) - len(last))
    assert torch.equal(crops.take_crops(planes, windows, flips), expected)
    assert torch.equal(crops.take_crops_plain(planes, windows, flips), expected)


ON_GPUS_ALONE: Mapping[str, Check] = {
    "memory is filled": check_filling,
    "crops behind 2^31 bytes": check_large_memory,
    "the response norm in a CUDA graph": check_graph,
    "the driver knows the GPU": check_driver,
}
