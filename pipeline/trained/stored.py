"""What is stored of a trained network, whichever files it was read from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.config.schema import Config
from pipeline.run.dataset import Dataset
from pipeline.run.events import EvalEvent

_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64)
"""Of weights and of what is counted beside them; torch does not compute with all others."""

Weights = dict[str, torch.Tensor]
"""A state dict, by the network's own names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where weights come from."""

    recipe: str
    run: str
    """Name of the run's directory."""
    step: int
    """Steps that were done."""
    weights_sha256: str
    """See `sha256_of_weights`."""
    evaluations: tuple[EvalEvent, ...] = ()
    """Of exactly these weights, oldest first."""
    began: Mapping[str, Any] | None = None
    """What the weights began as, where that is those of another network."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredNetwork:
    """The weights of a network, finite, and all that their use needs."""

    path: Path
    """Where they were read from."""
    weights: Weights
    config: Config
    dataset: Dataset
    origin: Origin


def checked_weights(found: object, where: object) -> Weights:
    """`found` in the file `where`, if it is a state dict of dense, finite tensors.

    Raises `ValueError` if it is not.
    """
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{where} holds no weights; expected tensors by name")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(
                f"{where} is not a state dict: {name!r} is of type {type(tensor).__name__}; "
                "expected tensors by name"
            )
        if tensor.is_nested or tensor.layout != torch.strided or tensor.dtype not in _TYPES:
            raise ValueError(
                f"{where}: {name} is a {tensor.dtype} tensor of layout {tensor.layout}; expected "
                "dense floats"
            )
        num_bytes = tensor.numel() * tensor.element_size()
        if tensor.is_meta or num_bytes > tensor.untyped_storage().nbytes():
            raise ValueError(f"{where}: {name} is larger than what is stored of it")
        if not bool(tensor.isfinite().all()):
            raise ValueError(
                f"{where}: {name} has values that are not finite; choose weights of an earlier step"
            )
    return found


def sha256_of_weights(weights: Weights) -> str:
    """Hash of names, types, shapes and values, whatever file they are in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().reshape(-1).contiguous()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
