"""A network as an ONNX graph of standard operators, layer by layer.

The graph is written from the layers themselves: torch's own exporter has no form for the fused
response norm, and would write the plain one as dozens of operators in place of `LRN`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn
from torch.nn import functional as F

from pipeline.model.dropout import Dropout
from pipeline.model.response_norm import Norm, NormalizeAndPool
from pipeline.trained.network import TrainedNetwork

if TYPE_CHECKING:
    import onnx

OLDEST_OPSET = 13
"""From which on `Softmax` is one of an axis, and not of all that follows it."""
OPSET = 17
"""Of 2022, which runtimes of all kinds read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphOptions:
    """What an ONNX graph is to be."""

    opset: int = OPSET
    preprocessing: bool = False
    """From uint8 images to probabilities, not from normalized ones to logits."""


def build(network: TrainedNetwork, options: GraphOptions) -> onnx.ModelProto:
    """The network for any number of images N.

    `images` float32 N×3×S×S give `logits` N×num_classes. With `preprocessing` RGB `images` uint8
    N×H×W×3, of the size that evaluation takes its middle from, give `probabilities`. Raises
    `ImportError` without the package onnx, and `ValueError` if it does not know the opset, or a
    layer has no form here.
    """
    import onnx
    from onnx import TensorProto, helper

    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= options.opset <= newest:
        raise ValueError(
            f"--opset is {options.opset}; expected {OLDEST_OPSET} (older ones lack what is "
            f"needed) to {newest} (the newest that the installed onnx knows)"
        )
    graph, classes = Graph(options.opset), network.dataset.num_classes
    if options.preprocessing:
        shape, kind = [*network.evaluated_size, 3], TensorProto.UINT8
        logits = _network(graph, network.model, _preprocessing(graph, network, "images"))
        graph.node("Softmax", [logits], "probabilities", axis=1)
        result = "probabilities"
    else:
        shape, kind = [3, *network.input_size], TensorProto.FLOAT
        logits = _network(graph, network.model, "images")
        graph.node("Identity", [logits], "logits")
        result = "logits"
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            network.config.model.name,
            [helper.make_tensor_value_info("images", kind, ["num_images", *shape])],
            [helper.make_tensor_value_info(result, TensorProto.FLOAT, ["num_images", classes])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", options.opset)],
        producer_name="alexnet-2012",
    )
    model.ir_version = helper.find_min_ir_version_for(model.opset_import)
    onnx.checker.check_model(model, full_check=True)
    return model


class Graph:
    """Nodes and constants, in order; a value is known by its name."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def node(self, operation: str, inputs: Sequence[str], result: str = "", **how: Any) -> str:
        """Add an operator with one result, and return its name."""
        return self.nodes_of(operation, inputs, [result or f"value{len(self.nodes)}"], **how)[0]

    def nodes_of(
        self, operation: str, inputs: Sequence[str], results: list[str], **how: Any
    ) -> list[str]:
        from onnx import helper

        self.nodes.append(helper.make_node(operation, inputs, results, **how))
        return results

    def constant(self, value: npt.ArrayLike | torch.Tensor, name: str = "") -> str:
        """Add an array under the `name` of a weight, or one of its own."""
        from onnx import numpy_helper

        array = value.cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        name = name or f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name


def _preprocessing(graph: Graph, network: TrainedNetwork, images: str) -> str:
    """The middle of uint8 images N×H×W×3, normalized, as N×3×S×S."""
    (height, width), whole = network.input_size, network.evaluated_size
    top, left = (whole[0] - height) // 2, (whole[1] - width) // 2
    if (height, width) != whole:
        places = [top, left], [top + height, left + width], [1, 2]
        arrays = (graph.constant(np.array(each, np.int64)) for each in places)
        images = graph.node("Slice", [images, *arrays])
    normalizer = network.normalizer()
    pixels = graph.node("Cast", [images], to=1)  # to FLOAT
    scaled = graph.node("Mul", [pixels, graph.constant(normalizer.scale)])
    shifted = graph.node("Add", [scaled, graph.constant(normalizer.shift)])
    return graph.node("Transpose", [shifted], perm=[0, 3, 1, 2])


class _Tracer(fx.Tracer):
    """Takes our own layers as they are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Dropout | NormalizeAndPool) or super().is_leaf_module(
            m, module_qualified_name
        )


def _network(graph: Graph, model: nn.Module, images: str) -> str:
    """Add the layers of a network in evaluation; returns the name of its logits."""
    values: dict[fx.Node, str] = {}
    for node in _Tracer().trace(model).nodes:
        inputs = [values[each] for each in node.all_input_nodes if each in values]
        match node.op, node.target:
            case "placeholder", "images":
                values[node] = images
            case "placeholder", _:
                pass
            case "call_module", str(name):
                values[node] = _layer(graph, model.get_submodule(name), name, inputs[0])
            case "call_function", F.relu:
                values[node] = graph.node("Relu", inputs)
            case "call_function", F.pad:
                left, right, top, bottom = node.args[1]
                pads = graph.constant(np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
                values[node] = graph.node("Pad", [*inputs, pads])
            case "call_method", "flatten":
                values[node] = graph.node("Flatten", inputs, axis=1)
            case "output", _:
                return inputs[0]
            case _:
                raise ValueError(
                    f"{node.target} of {type(model).__name__} has no form in ONNX here"
                )
    raise AssertionError("a traced network has an output")


def _layer(graph: Graph, layer: nn.Module, name: str, x: str) -> str:
    """Add one layer, whose weights have `name` before theirs."""

    def weights(*names: str) -> list[str]:
        return [graph.constant(getattr(layer, each).detach(), f"{name}.{each}") for each in names]

    match layer:
        case nn.Conv2d():
            assert isinstance(layer.padding, tuple)
            return graph.node(
                "Conv",
                [x, *weights("weight", "bias")],
                group=layer.groups,
                kernel_shape=layer.kernel_size,
                pads=layer.padding * 2,
                strides=layer.stride,
            )
        case nn.Linear():
            return graph.node("Gemm", [x, *weights("weight", "bias")], transB=1)
        case nn.BatchNorm2d():
            moments = weights("weight", "bias", "running_mean", "running_var")
            return graph.node("BatchNormalization", [x, *moments], epsilon=layer.eps)
        case nn.MaxPool2d():
            assert isinstance(layer.kernel_size, int)
            assert isinstance(layer.stride, int)
            return _max_pool(graph, x, layer.kernel_size, layer.stride)
        case nn.ReLU():
            return graph.node("Relu", [x])
        case nn.Tanh():
            return graph.node("Tanh", [x])
        case Dropout():
            factor = layer.factor_in_evaluation
            if factor == 1:
                return x
            return graph.node("Mul", [x, graph.constant(np.float32(factor))])
        case NormalizeAndPool():
            return _normalize_and_pool(graph, x, layer.norm)
        case _:
            raise ValueError(f"a layer of type {type(layer).__name__} has no form in ONNX here")


def _max_pool(graph: Graph, x: str, kernel: int, stride: int) -> str:
    return graph.node("MaxPool", [x], kernel_shape=[kernel] * 2, strides=[stride] * 2)


def _normalize_and_pool(graph: Graph, x: str, norm: Norm) -> str:
    """The norm of each column by itself: `LRN` goes over all channels of what it is given.

    ONNX divides alpha by the size of the window before it multiplies, and our `Norm` does not.
    """
    if norm.relu_first:
        x = graph.node("Relu", [x])
    columns = [x]
    if norm.num_columns > 1:
        # From 18 on the number of parts must be said; before, there was no word for it.
        parts = {"num_outputs": norm.num_columns} if graph.opset >= 18 else {}
        names = [f"{x}_column{number}" for number in range(norm.num_columns)]
        columns = graph.nodes_of("Split", [x], names, axis=1, **parts)
    alpha = norm.alpha * norm.size
    how: dict[str, Any] = {"alpha": alpha, "beta": 0.75, "bias": norm.k, "size": norm.size}
    columns = [graph.node("LRN", [column], **how) for column in columns]
    x = columns[0] if len(columns) == 1 else graph.node("Concat", columns, axis=1)
    pooled = _max_pool(graph, x, 3, 2)
    return pooled if norm.relu_first else graph.node("Relu", [pooled])
