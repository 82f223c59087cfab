"""A run that is usable without its shard set, for the tests of what is done with networks."""

from __future__ import annotations

from pathlib import Path

import torch

from data_prep.shard_set.manifest import manifest_sha256, read_manifest
from pipeline.config.model import ModelConfig
from pipeline.model.build import build_model
from pipeline.run import checkpoint
from pipeline.run.dataset import Dataset, write_dataset
from tests.formats.fixtures import RUN_SHARDS, VERSIONS, unpack_run

SHARDS = VERSIONS[0] / "shards" / RUN_SHARDS
"""What it was trained on: generated shapes of 32×32 in ten classes, as pixels."""


def unpack_usable_run(folder: Path) -> Path:
    """Of the network `alexnet_cifar`; its answers are no good, but very different ones."""
    run, manifest = unpack_run(VERSIONS[0], folder), read_manifest(SHARDS)
    dataset = Dataset.of_shards(SHARDS, manifest, manifest_sha256(SHARDS), with_mean_image=False)
    write_dataset(run, dataset)
    (newest, *_) = checkpoint.paths(run / "checkpoints")
    state = checkpoint.load(newest)
    torch.manual_seed(0)
    model = build_model(ModelConfig(name="alexnet_cifar"), manifest.num_classes, (32, 32))
    state["model"] = model.state_dict()
    (*_, last) = (name for name, tensor in state["model"].items() if tensor.ndim == 2)
    state["model"][last] *= 100
    checkpoint.save(newest.parent, checkpoint.step_of(newest), state)
    return run
