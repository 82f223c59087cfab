"""The training step on one GPU, from uint8 images that are already in its memory.

Called by `benchmarks.step` where there is a GPU. Images a second of `alexnet_fast` at several batch
sizes, crop, flip and colour noise included, against eager PyTorch of the same network
(`benchmarks.rivals.eager_alexnet`: channels-last, under autocast, from inputs that are ready);
first all rounds of ours, then all of the rival's. Each size starts with nothing compiled, as a run
of its own would. A size that the GPU's memory is too small for has no figures.

Then where the time of batch 1024 in bf16 goes, twice. The kernels of whole steps, as the profiler
names them. And groups of kernels beside the roofline that was worked out for each. For these no
name is interpreted: each layer runs by itself, the product's own module compiled as training
compiles the whole network, on what the layer before made of the images, and CUDA events around its
forward and its backward pass tell the time; likewise around the input pipeline (draws, cut and
`Normalizer`) and the update. Casts of weights and the addition to their gradients belong to the
layer. The loss is in no group, and what is merged across layers is seen in the whole step only.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks.measurement import spread
from benchmarks.rivals import eager_alexnet
from pipeline.config.recipes import alexnet_fast
from pipeline.config.schema import DistributedConfig
from pipeline.data.augment.crop_policy import training_crop_policy
from pipeline.data.augment.crops import CropWindows, to_device
from pipeline.data.augment.normalize import Normalizer
from pipeline.data.augment.preprocess import ORIGINAL, draw_color_shifts
from pipeline.data.augment.shifts import draw_flips
from pipeline.data.order.randomness import dropout_keys
from pipeline.model.alexnet import AlexNet2012
from pipeline.model.build import build_model
from pipeline.optim.precision import autocast
from pipeline.optim.replica import Replica
from pipeline.ranks.connect import connect
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.mesh import build_mesh

Precision = Literal["bf16", "fp16"]
Step = Callable[[], None]
Layer = Callable[[torch.Tensor], torch.Tensor]

BATCH_SIZES = (128, 512, 1024, 2048, 4096)
STEPS = 20
FLOPS_OF_IMAGE = 4.1356e9
"""Forward and backward without the gradient of the pixels."""

ROOFLINE = {
    "input": 0.108,
    "conv1, forward": 0.273,
    "conv1, backward": 0.273,
    "LRN1+pool1, forward": 0.172,
    "LRN1+pool1, backward": 0.310,
    "conv2, forward": 0.581,
    "conv2, backward": 1.161,
    "LRN2+pool2, forward": 0.109,
    "LRN2+pool2, backward": 0.198,
    "conv3, forward": 0.388,
    "conv3, backward": 0.775,
    "conv4, forward": 0.291,
    "conv4, backward": 0.581,
    "conv5, forward": 0.194,
    "conv5, backward": 0.388,
    "pool5, forward": 0.025,
    "pool5, backward": 0.046,
    "fc6-8, forward": 0.152,
    "fc6-8, backward": 0.304,
    "SGD update": 0.284,
}
"""Milliseconds at batch 1024 in bf16: the larger of FLOPs / 790 TFLOP/s and bytes / 4.3 TB/s, which
one H200 was measured to reach. The same two rates of the GPU at hand are among the figures."""

_GPU = torch.device("cuda")
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

_LEARNING_RATE = 1e-5
"""So low that nothing diverges on random labels: products of NaNs take another time."""

_IMAGES_IN_GROUPS = 1024
_WARM_UP, _REPEATS = 3, 20
_MATRIX_SIZE, _PRODUCTS = 8192, 16
"""This number of products of square matrices of this size takes an H200 more than 20 ms."""


class OurStep:
    """A step of `alexnet_fast` as training takes it, but for images and labels, which are there."""

    def __init__(self, num_images: int, precision: Precision) -> None:
        recipe = alexnet_fast()
        optim = dataclasses.replace(recipe.optim, learning_rate=_LEARNING_RATE)
        config = dataclasses.replace(
            recipe, optim=optim, precision=precision, global_batch_size=num_images
        )
        with connect(LaunchEnvironment(), DistributedConfig()) as world:
            network = build_model(config.model, 1000, (224, 224))
            self.replica = Replica(network, config, world, build_mesh(world, "fused", 60))
        self._augment = config.augment
        self._dtype = _TYPES[precision]
        self._samples = np.arange(num_images)
        self._crop_policy = training_crop_policy(config.augment, (256, 256), 0)
        shape = (num_images, 256, 256, 3)
        self._images = torch.randint(256, shape, dtype=torch.uint8, device=_GPU)
        self._labels = torch.randint(1000, (num_images,), device=_GPU)
        self._normalizer = Normalizer(np.full((224, 224, 3), 120.0), np.ones(3), _GPU)

    def inputs(self) -> torch.Tensor:
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
            color_shifts=to_device(shifts, _GPU),
            divisor=1 + size,
            dtype=self._dtype,
        )

    def keys(self) -> torch.Tensor:
        return to_device(dropout_keys(0, 0, self._samples), _GPU)

    def __call__(self) -> None:
        self.replica.add_gradients(
            self.inputs(),
            self.keys(),
            self._labels,
            step_samples=len(self._samples),
            is_last=True,
        )
        self.replica.update()


def eager_step(num_images: int, precision: Precision) -> Step:
    images = 60 * torch.randn(num_images, 3, 224, 224, device=_GPU)
    labels = torch.randint(1000, (num_images,), device=_GPU)
    return eager_alexnet.plain_step(
        images, labels, precision=_TYPES[precision], learning_rate=_LEARNING_RATE
    )


def start_afresh() -> None:
    """Forget what was compiled, as a new process would, and give back its memory.

    Else torch would take the second batch size for a reason to compile for all of them at once.
    """
    gc.collect()
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


def rates(
    make_step: Callable[[int, Precision], Step], num_images: int, precision: Precision, rounds: int
) -> list[float]:
    """Images a second of each round of `STEPS` steps, after one round to warm up.

    None at all if the memory does not suffice.
    """
    start_afresh()
    try:
        step = make_step(num_images, precision)
        return [STEPS * num_images / _seconds_of_round(step) for _ in range(rounds + 1)][1:]
    except torch.OutOfMemoryError:
        return []


def _seconds_of_round(step: Step) -> float:
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(STEPS):
        step()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def comparison(ours: list[float], eager: list[float], peak: float) -> dict[str, Any]:
    """Both sides' rates, and ours against `peak`, in FLOP/s; nothing of a side without rates."""
    sides = {"ours": ours, "eager": eager}
    found: dict[str, Any] = {name: spread(side, 0) for name, side in sides.items() if side}
    if ours:
        found["share of the matmul rate"] = spread([r * FLOPS_OF_IMAGE / peak for r in ours])
    if ours and eager:
        found["ratio of the medians"] = round(statistics.median(ours) / statistics.median(eager), 2)
    return found


def milliseconds(*parts: Callable[[], object]) -> list[list[float]]:
    """The GPU's time for each of the parts, run one after the other: a list of repeats for each.

    They queue up behind matrix products that take longer than the host does to launch them, so that
    waiting for launches is not counted; and those leave nothing of the parts in the GPU's caches.
    """
    matrix = _random_matrix()
    found: list[list[float]] = [[] for _ in parts]
    for number in range(_WARM_UP + _REPEATS):
        for _ in range(_PRODUCTS):
            matrix @ matrix
        events = [torch.cuda.Event(enable_timing=True) for _ in range(len(parts) + 1)]
        events[0].record()
        for part, event in zip(parts, events[1:], strict=True):
            part()
            event.record()
        torch.cuda.synchronize()
        if number >= _WARM_UP:
            for times, (begin, end) in zip(found, itertools.pairwise(events), strict=True):
                times.append(begin.elapsed_time(end))
    return found


def _random_matrix() -> torch.Tensor:
    return torch.randn(_MATRIX_SIZE, _MATRIX_SIZE, device=_GPU, dtype=torch.bfloat16)


def matmul_flops_per_second() -> float:
    """What the largest matrix products of this GPU reach in bf16."""
    matrix = _random_matrix()
    (times,) = milliseconds(lambda: matrix @ matrix)
    return 2 * _MATRIX_SIZE**3 / statistics.median(times) * 1000


def copied_bytes_per_second() -> float:
    """What a copy within this GPU's memory reaches, read and written bytes together."""
    source = torch.zeros(1 << 30, dtype=torch.uint8, device=_GPU)
    target = torch.empty_like(source)
    (times,) = milliseconds(lambda: target.copy_(source))
    return 2 * source.nbytes / statistics.median(times) * 1000


def kernels(step: Step) -> list[dict[str, Any]]:
    """The kernels of a step by the time they take, in milliseconds a step."""
    _seconds_of_round(step)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        _seconds_of_round(step)
    rows = [row for row in profiled.key_averages() if not row.is_user_annotation]
    rows.sort(key=lambda row: -row.self_device_time_total)
    return [
        {"kernel": row.key[:90], "ms": round(row.self_device_time_total / 1000 / STEPS, 4)}
        for row in rows[:25]
    ]


def layers(network: AlexNet2012, keys: torch.Tensor) -> dict[str, Layer]:
    """The network's forward pass in parts, in order."""

    def fully_connected(maps: torch.Tensor) -> torch.Tensor:
        units = network.drop6(F.relu(network.fc6(maps.flatten(1))), keys)
        units = network.drop7(F.relu(network.fc7(units)), keys)
        logits: torch.Tensor = network.fc8(units)
        return logits

    return {
        "conv1": lambda images: network.conv1(F.pad(images, (0, 3, 0, 3))),
        "LRN1+pool1": network.pool1,
        "conv2": network.conv2,
        "LRN2+pool2": network.pool2,
        "conv3": lambda maps: F.relu(network.conv3(maps)),
        "conv4": lambda maps: F.relu(network.conv4(maps)),
        "conv5": network.conv5,
        "pool5": network.pool5,
        "fc6-8": fully_connected,
    }


class Passes:
    """A layer's forward and backward pass by themselves, compiled."""

    def __init__(self, layer: Layer, inputs: torch.Tensor, *, is_first: bool) -> None:
        self._layer: Layer = torch.compile(layer)
        self._inputs = inputs.detach().requires_grad_(not is_first)
        self.forward()
        self._gradient = torch.randn_like(self.outputs)

    def forward(self) -> None:
        with autocast("bf16", _GPU):
            self.outputs = self._layer(self._inputs)

    def backward(self) -> None:
        self._inputs.grad = None
        self.outputs.backward(self._gradient)


def layer_times(step: OurStep) -> Iterator[tuple[str, list[float]]]:
    """Milliseconds of each layer's forward and backward pass."""
    network = step.replica.model
    assert isinstance(network, AlexNet2012)
    values = step.inputs()
    for number, (name, layer) in enumerate(layers(network, step.keys()).items()):
        start_afresh()
        passes = Passes(layer, values, is_first=number == 0)
        forward, backward = milliseconds(passes.forward, passes.backward)
        yield f"{name}, forward", forward
        yield f"{name}, backward", backward
        values = passes.outputs.detach()


def groups(step: OurStep) -> dict[str, Any]:
    """Milliseconds of each group by itself, of their sum and of the whole step."""
    (whole,) = milliseconds(step)
    assert step.replica.is_finite()
    (inputs,) = milliseconds(step.inputs)
    (update,) = milliseconds(step.replica.update)
    times = {"input": inputs, **dict(layer_times(step)), "SGD update": update}
    total = sum(statistics.median(values) for values in times.values())
    found: dict[str, Any] = {
        name: {**spread(values, 3), "roofline": ROOFLINE[name]} for name, values in times.items()
    }
    found["sum"] = {"median": round(total, 3), "roofline": round(sum(ROOFLINE.values()), 3)}
    found["whole step"] = spread(whole, 3)
    return found


def figures(rounds: int) -> dict[str, Any]:
    """Everything; needs CUDA."""
    peak = matmul_flops_per_second()
    found: dict[str, Any] = {
        "name": torch.cuda.get_device_name(),
        "matmul_tflops": round(peak / 1e12, 1),
        "copy_terabytes_per_second": round(copied_bytes_per_second() / 1e12, 2),
    }
    precisions: tuple[Precision, ...] = ("bf16", "fp16")
    for precision, num_images in itertools.product(precisions, BATCH_SIZES):
        measure = functools.partial(
            rates, num_images=num_images, precision=precision, rounds=rounds
        )
        found[f"{precision}, batch {num_images}"] = comparison(
            measure(OurStep), measure(eager_step), peak
        )
    start_afresh()
    step = OurStep(_IMAGES_IN_GROUPS, "bf16")
    found["kernels at batch 1024, bf16"] = kernels(step)
    found["groups at batch 1024, bf16"] = groups(step)
    return found
