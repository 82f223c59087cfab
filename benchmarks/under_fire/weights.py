"""Whether two runs have the same weights."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.run import checkpoint
from pipeline.run.directory import RunDirectory


def is_equal(run: RunDirectory, other: RunDirectory, step: int) -> bool:
    """Whether the checkpoints of that step have the same weights, optimizer and scaler."""
    path, *paths = (checkpoint.path_of(one.checkpoints, step) for one in (run, other))
    state, expected = checkpoint.load(path), checkpoint.load(paths[0])
    return all(same(state[part], expected[part]) for part in ("model", "optimizer", "scaler"))


def same(value: Any, other: Any) -> bool:
    """Of nested dictionaries and lists, tensors bit for bit."""
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(
            same(value[name], other[name]) for name in value
        )
    if isinstance(value, list | tuple):
        return len(value) == len(other) and all(map(same, value, other))
    if isinstance(value, torch.Tensor):
        return torch.equal(value, other)
    return bool(value == other)
