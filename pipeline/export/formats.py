"""A network's weights, and its whole computation, in the formats that are plain torch's."""

from __future__ import annotations

import copy
import io
from typing import Literal, assert_never, get_args

import torch
from torch import nn

from data_prep.shard_set.fields import did_you_mean
from pipeline.export import onnx_model
from pipeline.model.response_norm import NormalizeAndPool, normalize_and_pool_plain
from pipeline.trained.exported import WEIGHTS
from pipeline.trained.network import TrainedNetwork

Format = Literal["safetensors", "torch", "onnx", "pt2"]
FORMATS: tuple[Format, ...] = get_args(Format)


def read_formats(text: str) -> str:
    """The names in `text`, with commas between them, each once; raises `ValueError`."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in FORMATS:
            hint = did_you_mean(name, FORMATS, before="; ")
            raise ValueError(f"--format is {name!r}; expected {', '.join(FORMATS)}{hint}")
    if not names:
        raise ValueError(f"--format is empty; expected {', '.join(FORMATS)}")
    return ",".join(name for name in FORMATS if name in names)


def file_name(form: Format) -> str:
    match form:
        case "safetensors":
            return WEIGHTS
        case "torch":
            return "model.pt"
        case "onnx":
            return "model.onnx"
        case "pt2":
            return "model.pt2"
        case unknown:
            assert_never(unknown)


def content_of(form: Format, network: TrainedNetwork, graph: onnx_model.GraphOptions) -> bytes:
    """The file of that format; raises `ImportError` if the extra `export` is not installed."""
    weights = {name: part.contiguous() for name, part in network.model.state_dict().items()}
    buffer = io.BytesIO()
    match form:
        case "safetensors":
            from safetensors.torch import save

            return bytes(save(weights, metadata={"format": "pt"}))
        case "torch":
            torch.save(weights, buffer)
        case "onnx":
            return bytes(onnx_model.build(network, graph).SerializeToString())
        case "pt2":
            torch.export.save(exported_program(network), buffer)
        case unknown:
            assert_never(unknown)
    return buffer.getvalue()


class _Plain(nn.Module):
    """`NormalizeAndPool` of torch's own operations, which run where this project is not."""

    def __init__(self, layer: NormalizeAndPool) -> None:
        super().__init__()
        self._norm = layer.norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return normalize_and_pool_plain(x, self._norm)


def exported_program(network: TrainedNetwork) -> torch.export.ExportedProgram:
    """The network for any number of images, float32 N×3×S×S to logits N×num_classes."""
    model = copy.deepcopy(network.model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, NormalizeAndPool):
                setattr(parent, name, _Plain(child))
    images = torch.zeros(2, 3, *network.input_size, device=network.device)
    any_number = {0: torch.export.Dim("num_images", min=1)}
    return torch.export.export(model, (images,), dynamic_shapes={"images": any_number})
