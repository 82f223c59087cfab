"""Where the time of a step in bf16 goes, twice.

The kernels of whole steps, as the profiler names them. And groups of kernels beside the roofline
that was worked out for each. For these no name is interpreted: each layer runs by itself, the
product's own module compiled as training compiles the whole network, on what the layer before made
of the images, and CUDA events around its forward and its backward pass tell the time; likewise
around the input pipeline (draws, cut and `Normalizer`) and the update. Casts of weights and the
addition to their gradients belong to the layer. The loss is in no group, and what is merged across
layers is seen in the whole step only.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional as F
from torch.profiler import profile

from benchmarks.gpu import steps
from benchmarks.gpu.results import Results
from benchmarks.gpu.scale import Scale
from benchmarks.gpu.timing import copied_bytes_per_second, matmul_flops_per_second, milliseconds
from benchmarks.measurement import spread
from pipeline.model.alexnet import AlexNet2012
from pipeline.optim.precision import autocast

Layer = Callable[[torch.Tensor], torch.Tensor]

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


def measure(scale: Scale, results: Results) -> None:
    rates = {
        "matmul_tflops": round(matmul_flops_per_second(scale, torch.bfloat16) / 1e12, 1),
        "copy_terabytes_per_second": round(copied_bytes_per_second(scale) / 1e12, 2),
    }
    for name, rate in rates.items():
        results.add(name, rate)
    steps.start_afresh()
    step = steps.our_step(scale.images_in_groups, "bf16", scale)
    results.add("images", scale.images_in_groups)
    (whole,) = milliseconds(scale, step)
    assert step.replica.is_finite()
    groups: dict[str, Any] = {"whole step": spread(whole, 3)}
    results.add("groups", groups)
    results.add("kernels", kernels(step, scale))  # while the step is compiled
    total = 0.0
    for name, times in group_times(step, scale):
        groups[name] = {**spread(times, 3), "roofline": ROOFLINE[name]}
        results.add("groups", groups)
        total += statistics.median(times)
    groups["sum"] = {"median": round(total, 3), "roofline": round(sum(ROOFLINE.values()), 3)}
    results.add("groups", groups)


def kernels(step: steps.OurStep, scale: Scale) -> list[dict[str, Any]]:
    """The kernels of a step by the time they take, in milliseconds a step.

    It has been done before: compiled, and warm.
    """
    count = scale.steps_in_round(scale.images_in_groups)
    with profile(activities=[scale.activity]) as profiled:
        steps.seconds_of(step, count, scale)
    rows = [row for row in profiled.key_averages() if not row.is_user_annotation]
    spent = {row.key: getattr(row, scale.profiled_time) for row in rows}
    longest = sorted(spent, key=lambda name: -spent[name])[:25]
    return [{"kernel": name[:90], "ms": round(spent[name] / 1000 / count, 4)} for name in longest]


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

    def __init__(self, layer: Layer, inputs: torch.Tensor, scale: Scale, *, is_first: bool) -> None:
        self._layer: Layer = torch.compile(layer, backend=scale.compiler)
        self._device = scale.device
        self._inputs = inputs.detach().requires_grad_(not is_first)
        self.forward()
        self._gradient = torch.randn_like(self.outputs)

    def forward(self) -> None:
        with autocast("bf16", self._device):
            self.outputs = self._layer(self._inputs)

    def backward(self) -> None:
        self._inputs.grad = None
        self.outputs.backward(self._gradient)


def layer_times(step: steps.OurStep, scale: Scale) -> Iterator[tuple[str, list[float]]]:
    """Milliseconds of each layer's forward and backward pass."""
    network = step.replica.model
    assert isinstance(network, AlexNet2012)
    values = step.inputs()
    for number, (name, layer) in enumerate(layers(network, step.keys()).items()):
        steps.start_afresh()
        passes = Passes(layer, values, scale, is_first=number == 0)
        forward, backward = milliseconds(scale, passes.forward, passes.backward)
        yield f"{name}, forward", forward
        yield f"{name}, backward", backward
        values = passes.outputs.detach()


def group_times(step: steps.OurStep, scale: Scale) -> Iterator[tuple[str, list[float]]]:
    """Milliseconds of each group by itself."""
    (inputs,) = milliseconds(scale, step.inputs)
    yield "input", inputs
    (update,) = milliseconds(scale, step.replica.update)
    yield "SGD update", update
    yield from layer_times(step, scale)
