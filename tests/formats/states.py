"""The state in a checkpoint: its layout as JSON, a state of that layout, and its weights compared.

Networks have up to 60 million weights, so no state of them is kept, but its layout: the names in
their order, and of each tensor its type and shape. A test fills a state of that layout with short
patterns, which depend on the tensor's name alone, and lets the commands go on from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

_TENSOR = "tensor"
_PATTERN_LENGTH = 8
_NOT_NEGATIVE = ("running_var", "exp_avg_sq")
_NUM_SHOWN = 4


def load(checkpoint: Path) -> dict[str, Any]:
    """The state of a checkpoint's folder, which must be as `checkpoint.json` says."""
    facts = json.loads((checkpoint / "checkpoint.json").read_bytes())
    path = checkpoint / "state.pt"
    assert facts["num_bytes"] == path.stat().st_size
    assert facts["sha256"] == file_sha256(path)
    state: dict[str, Any] = torch.load(path, weights_only=True, mmap=True)
    return state


def save(checkpoint: Path, step: int, state: Mapping[str, Any]) -> None:
    """Write a checkpoint of version 1."""
    checkpoint.mkdir(parents=True)
    path = checkpoint / "state.pt"
    torch.save(state, path)
    num_bytes, sha256 = path.stat().st_size, file_sha256(path)
    facts = {"format_version": 1, "step": step, "num_bytes": num_bytes, "sha256": sha256}
    (checkpoint / "checkpoint.json").write_text(json.dumps(facts))


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def newest(run: Path) -> Path:
    """The folder of the run's newest checkpoint."""
    return max((run / "checkpoints").glob("step-*"))


def layout_of(value: Any) -> Any:
    """As JSON: tensors of more than one number as type and shape, all else as it is."""
    if isinstance(value, torch.Tensor):
        shape, dtype = list(value.shape), str(value.dtype).removeprefix("torch.")
        found = {_TENSOR: dtype, "shape": shape}
        return found if value.ndim else found | {"value": value.item()}
    if isinstance(value, dict):
        return {name: layout_of(item) for name, item in value.items()}
    return value


def filled(layout: Any, name: str = "") -> Any:
    """A state of that layout."""
    if not isinstance(layout, dict):
        return layout
    if _TENSOR not in layout:
        return {key: filled(item, f"{name}.{key}") for key, item in layout.items()}
    dtype = getattr(torch, layout[_TENSOR])
    if "value" in layout:
        return torch.tensor(layout["value"], dtype=dtype)
    return pattern(name, layout["shape"], dtype)


def pattern(name: str, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    """Small binary fractions, the same few over and over."""
    digest = hashlib.sha256(name.encode()).digest()[:_PATTERN_LENGTH]
    values = torch.tensor([(byte - 128) / 4096 for byte in digest], dtype=dtype)
    if name.endswith(_NOT_NEGATIVE):
        values = values.abs() + 2**-6
    size = int(np.prod(shape))
    return values.repeat(size // _PATTERN_LENGTH + 1)[:size].reshape(shape)


def names_and_types(value: Any) -> Any:
    """What must be the same in every state of one layout: not its numbers and texts."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape)
    if isinstance(value, dict):
        return [(name, names_and_types(item)) for name, item in value.items()]
    return type(value).__name__ if value is not None else None


def tensors_of(state: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights, and the optimizer's tensors, in their order."""
    yield from ((f"model.{name}", tensor) for name, tensor in state["model"].items())
    for name, kinds in state["optimizer"]["tensors"].items():
        yield from ((f"optimizer.{name}.{kind}", tensor) for kind, tensor in kinds.items())


def sha256_of(state: Mapping[str, Any]) -> str:
    """Of names, types, shapes and numbers."""
    digest = hashlib.sha256()
    for name, tensor in tensors_of(state):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def summary_of(state: Mapping[str, Any]) -> dict[str, list[float]]:
    """Of each tensor the norm, and its numbers at some places."""
    found = {}
    for name, tensor in tensors_of(state):
        flat = tensor.flatten()
        norm = torch.linalg.vector_norm(flat.double())
        places = [number * (len(flat) - 1) // (_NUM_SHOWN - 1) for number in range(_NUM_SHOWN)]
        found[name] = [float(norm), *flat[places].tolist()]
    return found
