"""Fuzzers of what holds tensors, from whoever it comes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from pipeline.run import checkpoint
from pipeline.run.checkpoint import CheckpointError
from pipeline.run.torch_file import load_tensors
from pipeline.trained.exported import read_safetensors
from pipeline.trained.stored import Weights, checked_weights
from tests.fuzz.harness import Harness, Target, check_types, expect
from tests.fuzz.mutation import change_bytes, inside_zip

_WEIGHTS = {
    "first.weight": torch.arange(24, dtype=torch.float32).reshape(4, 6),
    "first.bias": torch.zeros(4, dtype=torch.bfloat16),
    "num_batches": torch.tensor(3),
}


def _check_weights(found: Weights) -> None:
    check_types(found, dict[str, torch.Tensor])
    for name, tensor in found.items():
        expect(bool(tensor.isfinite().all()), f"{name} is not finite")
        tensor.clone().reshape(-1).sum()  # it reads every number


def _torch_file(folder: Path) -> Target:
    path = folder / "x.pt"
    torch.save(_WEIGHTS, path)

    def read(content: bytes) -> None:
        path.write_bytes(content)
        _check_weights(checked_weights(load_tensors(path), path))

    return Target([path.read_bytes()], read)


def _checkpoint_state(folder: Path) -> Target:
    """With a hash that fits, as another writes it; and with the hash of the whole one."""
    path, _ = checkpoint.save(folder, 4, {"model": _WEIGHTS, "settings": "{}", "progress": [1]})
    state, facts = path / "state.pt", path / checkpoint.FACTS
    whole, fields = state.read_bytes(), json.loads(facts.read_bytes())

    def read(content: bytes) -> None:
        state.write_bytes(content[1:])
        own = {"num_bytes": len(content) - 1, "sha256": hashlib.sha256(content[1:]).hexdigest()}
        is_adapted = content[:1] == b"\1"
        facts.write_text(json.dumps(fields | (own if is_adapted else {})))
        found = checkpoint.load(path)
        expect(is_adapted or content[1:] == whole, "it is changed behind its hash")
        check_types(found, dict[object, object])

    return Target([b"\0" + whole, b"\1" + whole], read)


def _safetensors(folder: Path) -> Target:
    from safetensors.torch import save_file

    path = folder / "x.safetensors"
    save_file(_WEIGHTS, path)

    def read(content: bytes) -> None:
        path.write_bytes(content)
        _check_weights(read_safetensors(path))

    return Target([path.read_bytes()], read)


HARNESSES = (
    Harness(
        name="torch-file",
        prepare=_torch_file,
        errors=(ValueError,),
        changes=(inside_zip((change_bytes,)),),
    ),
    Harness(name="checkpoint-state", prepare=_checkpoint_state, errors=(CheckpointError,)),
    Harness(name="safetensors", prepare=_safetensors, errors=(ValueError,)),
)
