"""The training step on one GPU, from uint8 images that are already in its memory.

Images a second of `alexnet_fast` at several batch sizes and in each precision, crop, flip and
colour noise included, beside eager PyTorch of the same network (`benchmarks.rivals.eager_alexnet`:
channels-last, under autocast) and torchvision's `alexnet`, which is a smaller network, eager and
compiled; both from inputs that are ready. First all rounds of ours, then all of a rival's. Each
size starts with nothing compiled, as a run of its own would. A size that the memory is too small
for has no figures.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.results import Results, failed, left_out
from benchmarks.gpu.scale import Scale
from benchmarks.gpu.timing import matmul_flops_per_second
from benchmarks.measurement import spread
from benchmarks.rivals import eager_alexnet, torchvision_alexnet
from pipeline.config.model import Layout
from pipeline.config.recipes import alexnet_fast
from pipeline.config.schema import DistributedConfig, Precision
from pipeline.data.augment.crop_policy import training_crop_policy
from pipeline.data.augment.crops import CropWindows, to_device
from pipeline.data.augment.normalize import Normalizer
from pipeline.data.augment.preprocess import ORIGINAL, draw_color_shifts
from pipeline.data.augment.shifts import draw_flips
from pipeline.data.order.randomness import dropout_keys
from pipeline.model.build import build_model
from pipeline.optim.precision import type_of
from pipeline.optim.replica import Replica
from pipeline.ranks.connect import connect
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.mesh import build_mesh
from pipeline.ranks.world import World

Step = Callable[[], None]

FLOPS_OF_IMAGE = 4.1356e9
"""Forward and backward without the gradient of the pixels."""

STORED_PIXELS = 256
"""Height and width of the images, of which crops of 224×224 are taken."""

LEARNING_RATE = 1e-5
"""So low that nothing diverges on random labels: products of NaNs take another time."""


class OurStep:
    """A step of `alexnet_fast` as training takes it, but for images and labels, which are there.

    `num_images` are those of all ranks. With `is_ready` the network's inputs are there, too.
    """

    def __init__(
        self,
        num_images: int,
        precision: Precision,
        world: World,
        *,
        layout: Layout = "fused",
        is_ready: bool = False,
    ) -> None:
        recipe = alexnet_fast()
        config = dataclasses.replace(
            recipe,
            optim=dataclasses.replace(recipe.optim, learning_rate=LEARNING_RATE),
            model=dataclasses.replace(recipe.model, columns=layout),
            precision=precision,
            global_batch_size=num_images,
        )
        mesh = build_mesh(world, layout, 60)
        network = build_model(config.model, 1000, (224, 224), mesh.columns)
        self.replica = Replica(network, config, world, mesh)
        self._dtype = type_of(precision)
        device, own = world.device, num_images // mesh.num_replicas
        self._device = device
        self._num_images = num_images
        self._augment = config.augment
        self._samples = np.arange(own)
        size = (STORED_PIXELS, STORED_PIXELS)
        self._crop_policy = training_crop_policy(config.augment, size, 0)
        self._images = torch.randint(256, (own, *size, 3), dtype=torch.uint8, device=device)
        self._labels = torch.randint(1000, (own,), device=device)
        self._normalizer = Normalizer(np.full((224, 224, 3), 120.0), np.ones(3), device)
        self._ready = self._cut() if is_ready else None

    def inputs(self) -> torch.Tensor:
        return self._cut() if self._ready is None else self._ready

    def _cut(self) -> torch.Tensor:
        """What `pipeline.data.augment.preprocess.Augmenter` does with images that are resident."""
        size = self._augment.color_noise
        sides = (np.full(len(self._samples), side) for side in self._images.shape[1:3])
        boxes = self._crop_policy.boxes(self._samples, 0, *sides)
        crop_windows = CropWindows(
            rows=self._samples, tops=boxes.tops, lefts=boxes.lefts, size=(224, 224)
        )
        shifts = draw_color_shifts(ORIGINAL, size, 0, 0, self._samples).astype(np.float32)
        return self._normalizer.take(
            self._images,
            crop_windows,
            draw_flips(self._augment, 0, 0, self._samples),
            color_shifts=to_device(shifts, self._device),
            divisor=1 + size,
            dtype=self._dtype,
        )

    def keys(self) -> torch.Tensor:
        return to_device(dropout_keys(0, 0, self._samples), self._device)

    def __call__(self) -> None:
        self.replica.add_gradients(
            self.inputs(), self.keys(), self._labels, step_samples=self._num_images, is_last=True
        )
        self.replica.update()


def our_step(
    num_images: int, precision: Precision, scale: Scale, *, is_ready: bool = False
) -> OurStep:
    """On one rank."""
    with connect(LaunchEnvironment(), DistributedConfig(device=scale.kind)) as world:
        return OurStep(num_images, precision, world, is_ready=is_ready)


MakeStep = Callable[[int, Precision, Scale], Step]


def rival_step(
    make_network: Callable[[], torch.nn.Module],
    num_images: int,
    precision: Precision,
    scale: Scale,
    *,
    is_compiled: bool = False,
) -> Step:
    images = 60 * torch.randn(num_images, 3, 224, 224, device=scale.device)
    labels = torch.randint(1000, (num_images,), device=scale.device)
    return eager_alexnet.plain_step(
        make_network(),
        images,
        labels,
        precision=type_of(precision),
        learning_rate=LEARNING_RATE,
        compiler=scale.compiler if is_compiled else None,
    )


_TORCHVISION = functools.partial(rival_step, torchvision_alexnet.network)
SIDES: Mapping[str, MakeStep] = {
    "ours": our_step,
    "eager": functools.partial(rival_step, eager_alexnet.Network),
    "torchvision": _TORCHVISION,
    "torchvision, compiled": functools.partial(_TORCHVISION, is_compiled=True),
}


def start_afresh() -> None:
    """Forget what was compiled, as a new process would, and give back its memory.

    Else torch would take the second batch size for a reason to compile for all of them at once.
    """
    gc.collect()
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


def rates(make_step: MakeStep, num_images: int, precision: Precision, scale: Scale) -> list[float]:
    """Images a second of each round of steps, after one round to warm up.

    Raises `torch.OutOfMemoryError` if the memory does not suffice.
    """
    start_afresh()
    step = make_step(num_images, precision, scale)
    count = scale.steps_in_round(num_images)
    seconds = [seconds_of(step, count, scale) for _ in range(scale.rounds + 1)]
    return [count * num_images / one for one in seconds[1:]]


def seconds_of(step: Step, count: int, scale: Scale) -> float:
    scale.synchronize()
    begin = time.perf_counter()
    for _ in range(count):
        step()
    scale.synchronize()
    return time.perf_counter() - begin


def comparison(sides: Mapping[str, list[float]], peak: float | None) -> dict[str, Any]:
    """Each side's rates, and ours against eager PyTorch and against `peak`, in FLOP/s, if known."""
    found: dict[str, Any] = {name: spread(side, 0) for name, side in sides.items()}
    if "ours" in sides and peak is not None:
        found["share of the matmul rate"] = spread(
            [rate * FLOPS_OF_IMAGE / peak for rate in sides["ours"]]
        )
    if {"ours", "eager"} <= sides.keys():
        ratio = statistics.median(sides["ours"]) / statistics.median(sides["eager"])
        found["ratio of the medians"] = round(ratio, 2)
    return found


def table(scale: Scale, results: Results) -> None:
    """A row for each batch size and precision; each side of it is there once it is measured.

    Raises `RuntimeError` at the end if one of them has failed.
    """
    torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32, for rivals too
    results.add("torchvision is", torchvision_alexnet.origin())
    peaks, tflops, wrong = dict[str, float](), dict[str, Any](), list[str]()
    for one in scale.precisions:
        try:
            peaks[one] = matmul_flops_per_second(scale, type_of(one))
            tflops[one] = round(peaks[one] / 1e12, 1)
        except Exception as error:
            tflops[one] = failed(error)
            wrong.append(f"products in {one}")
        results.add("matmul_tflops", tflops)
    for num_images, precision in itertools.product(scale.batch_sizes, scale.precisions):
        sides: dict[str, list[float]] = {}
        missing: dict[str, Any] = {}
        for name, make_step in SIDES.items():
            try:
                sides[name] = rates(make_step, num_images, precision, scale)
            except torch.OutOfMemoryError:
                missing[name] = left_out(too_little_memory(scale))
            except Exception as error:
                missing[name] = failed(error)
                wrong.append(f"{name} in {precision}, batch {num_images}")
            row = f"{precision}, batch {num_images}"
            results.add(row, comparison(sides, peaks.get(precision)) | missing)
    if wrong:
        raise RuntimeError(f"{len(wrong)} measurements failed: {wrong[0]}")


def too_little_memory(scale: Scale) -> str:
    total = torch.cuda.mem_get_info()[1] if scale.kind == "cuda" else 0
    return f"it does not fit into the GPU's memory, {total / (1 << 30):.1f} GiB"
