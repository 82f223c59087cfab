"""What the products of a network's layers take alone on a CPU: the limit of `benchmarks.layers`."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

PRODUCTS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


class Layer(NamedTuple):
    module: nn.Module
    inputs: torch.Size
    outputs: torch.Size


Calls = dict[str, Callable[[], object]]
"""Ways to compute one thing, by name."""

LAYOUTS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}


def products(layers: Mapping[str, Layer], dtype: torch.dtype) -> dict[tuple[str, str], Calls]:
    """The products of each layer: `forward`, and `inputs` and `weights` of the backward pass."""
    found: dict[tuple[str, str], Calls] = {}
    for name in PRODUCTS:
        layer = layers[name]
        x, gradient = (torch.randn(one).to(dtype) for one in (layer.inputs, layer.outputs))
        weight = layer.module.get_parameter("weight").detach().to(dtype)
        of = _of_convolution if isinstance(layer.module, nn.Conv2d) else _of_linear
        for what, calls in of(layer.module, x, weight, gradient).items():
            if (name, what) != ("conv1", "inputs"):  # images have no gradient
                found[name, what] = calls
    return found


def _of_convolution(
    layer: Any, x: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor
) -> dict[str, Calls]:
    places = layer.stride, layer.padding, layer.dilation
    found: dict[str, Calls] = {"forward": {}, "inputs": {}, "weights": {}}
    for layout, form in LAYOUTS.items():
        held = [one.contiguous(memory_format=form) for one in (x, weight, gradient)]
        forward = functools.partial(F.conv2d, *held[:2], None, *places, layer.groups)
        backward = functools.partial(
            torch.ops.aten.convolution_backward,
            *(held[2], *held[:2], [len(weight)], *places, False, [0, 0], layer.groups),
        )
        found["forward"][layout] = forward
        found["inputs"][layout] = functools.partial(backward, [True, False, False])
        found["weights"][layout] = functools.partial(backward, [False, True, True])
    if x.dtype == torch.float32:  # in oneDNN's own layout, weights ready in its blocks
        ready = torch.ops.aten.mkldnn_reorder_conv2d_weight(
            *(weight.contiguous().to_mkldnn(), places[1], places[0], places[2], layer.groups)
        )
        arguments = x.contiguous().to_mkldnn(), ready, None, *(places[one] for one in (1, 0, 2))
        found["forward"]["oneDNN's"] = functools.partial(
            torch.ops.aten.mkldnn_convolution, *arguments, layer.groups
        )
    return found


def _of_linear(
    _: nn.Module, x: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor
) -> dict[str, Calls]:
    pairs = {"forward": (x, weight), "inputs": (gradient, weight.t())}
    pairs["weights"] = gradient.t(), x.t()
    found: dict[str, Calls] = {}
    for what, (left, right) in pairs.items():
        found[what] = {"torch's": functools.partial(F.linear, left, right)}
        found[what]["oneDNN's"] = functools.partial(
            torch.ops.mkldnn._linear_pointwise, *(left, right, None, "none", [], "")
        )
    return found


def seconds_of(calls: Mapping[tuple[str, str], Calls]) -> dict[tuple[str, str], dict[str, float]]:
    """Each once."""
    found: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    with torch.no_grad():
        for what, ways in calls.items():
            for way, call in ways.items():
                begin = time.perf_counter()
                call()
                found[what][way] = time.perf_counter() - begin
    return found
