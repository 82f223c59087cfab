"""Fuzzers of what holds tensors, from whoever it comes."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

import torch

from data_prep.shard_set.manifest import ShardSetError, read_manifest
from pipeline.config.schema import Config
from pipeline.run import checkpoint
from pipeline.run.checkpoint import CheckpointError
from pipeline.run.dataset import Dataset
from pipeline.run.event_log import of_type, read_rows
from pipeline.run.events import EvalEvent
from pipeline.run.settings import saved_settings, settings_of
from pipeline.run.torch_file import load_tensors
from pipeline.trained import exported
from pipeline.trained.network import read_stored
from pipeline.trained.stored import Origin, Weights, checked_weights, sha256_of_weights
from tests.fuzz.harness import Harness, Target, check_types, expect
from tests.fuzz.mutation import change_bytes, change_json, inside_zip
from tests.fuzz.run_files import RUN
from tests.fuzz.shard_files import SHARD_SETS

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
        _check_weights(exported.read_safetensors(path))

    return Target([path.read_bytes()], read)


def _checkpoint_settings(folder: Path) -> Target:
    """What a checkpoint says of its run, for which others take its network."""
    run = json.loads((RUN / "config.json").read_bytes())
    settings = json.dumps(settings_of(run).to_json())

    def read(content: bytes) -> None:
        state = {"model": _WEIGHTS, "settings": content.decode(errors="replace")}
        path, _ = checkpoint.save(folder, 4, state | {"progress": {"step": 4}})
        saved = saved_settings(checkpoint.load(path), path)
        check_types(saved, dict[str, object])
        with contextlib.suppress(ValueError):  # there is no shard set
            check_types(read_stored(str(path)).config, Config)

    return Target([settings.encode()], read)


def _export(folder: Path) -> Target:
    """Its `config.json`, beside weights that fit."""
    from safetensors.torch import save_file

    save_file(_WEIGHTS, folder / exported.WEIGHTS)
    run, shards = json.loads((RUN / "config.json").read_bytes()), SHARD_SETS / "scaled"
    data = Dataset.of_shards(shards, read_manifest(shards), "0" * 64, with_mean_image=True)
    origin = Origin(
        recipe="cifar10",
        run="x",
        step=60,
        weights_sha256=sha256_of_weights(_WEIGHTS),
        evaluations=tuple(of_type(read_rows(RUN / "events.jsonl"), EvalEvent))[:2],
        began={"path": "y"},
    )
    whole = exported.to_json(settings_of(run).config, data, origin, folder)

    def read(content: bytes) -> None:
        (folder / exported.CONFIG).write_bytes(content)
        found = exported.read_export(folder)
        check_types(found.config, Config)
        check_types(found.origin, Origin)
        expect(found.dataset.num_classes > 0, "no classes")

    return Target([json.dumps(whole).encode()], read)


HARNESSES = (
    Harness(
        name="torch-file",
        prepare=_torch_file,
        errors=(ValueError,),
        changes=(inside_zip((change_bytes,)),),
    ),
    Harness(name="checkpoint-state", prepare=_checkpoint_state, errors=(CheckpointError,)),
    Harness(
        name="checkpoint-settings",
        prepare=_checkpoint_settings,
        errors=(ValueError,),
        changes=(change_json,),
    ),
    Harness(name="safetensors", prepare=_safetensors, errors=(ValueError,)),
    Harness(
        name="export",
        prepare=_export,
        errors=(ValueError, ShardSetError),
        changes=(change_json,),
    ),
)
