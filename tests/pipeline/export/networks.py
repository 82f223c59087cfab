"""Each of the networks, with random weights and with few units in its dense layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from data_prep.shard_set.manifest import read_manifest
from pipeline.config.model import ModelConfig
from pipeline.config.recipes import RECIPES
from pipeline.model.build import build_model
from pipeline.run.dataset import Dataset
from pipeline.trained.network import TrainedNetwork
from pipeline.trained.stored import Origin
from tests.formats.fixtures import VERSIONS

SHARDS = VERSIONS[0] / "shards" / "rgb"
_UNITS = 24

NETWORKS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "alexnet_2012": ("alexnet_2012", {}),
    "alexnet_2012, paper": ("alexnet_2012", {"response_norm": "paper", "dropout_form": "original"}),
    "alexnet_2012, no norm": ("alexnet_2012", {"response_norm": "none"}),
    "alexnet_2014": ("alexnet_2014", {}),
    "alexnet_single": ("alexnet_single", {}),
    "alexnet_bn": ("alexnet_bn", {}),
    "alexnet_cifar": ("cifar10", {}),
}
"""A recipe, and the fields of its `model` that are others; all five networks are there."""

_IMAGE_SIZES = {"alexnet_single": 227, "cifar10": 32}


def network(name: str, units: int = _UNITS) -> TrainedNetwork:
    """With a mean image if the recipe subtracts one, and as many units in a dense layer."""
    recipe, changes = NETWORKS[name]
    config = RECIPES[recipe]()
    fields = dataclasses.asdict(config.model) | dict(changes)
    config = dataclasses.replace(config, model=ModelConfig(**fields))
    size = _IMAGE_SIZES.get(recipe, 240)
    dataset = Dataset.of_shards(SHARDS, read_manifest(SHARDS), "0" * 64, with_mean_image=False)
    if config.augment.subtracts_mean_image:
        mean = np.random.default_rng(1).uniform(90, 150, (size, size, 3)).astype(np.float32)
        dataset = dataclasses.replace(dataset, mean_image=mean)
    crop = config.augment.crop_pixels or size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = build_model(config.model, dataset.num_classes, (crop, crop))
        _randomize(model, units)
    found = TrainedNetwork(
        path=Path("checkpoint"),
        model=model.eval().requires_grad_(False),
        config=config,
        dataset=dataclasses.replace(dataset, image_size=(size, size)),
        origin=Origin(recipe=recipe, run="run", step=1, weights_sha256="0" * 64),
        device=torch.device("cpu"),
    )
    *_, last = (part for part in model.modules() if isinstance(part, nn.Linear))
    last.weight /= logits(found, images(found))[1].std()
    return found


def _randomize(model: nn.Module, units: int) -> None:
    """Weights that keep images apart in every layer; moments of BatchNorm that are not its first.

    Dense layers become as narrow as `units`: real ones have 200 MB.
    """
    dense = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    *_, last = dense
    inputs = next(iter(dense.values())).in_features
    for name, layer in dense.items():
        above, _, own_name = name.rpartition(".")
        outputs = layer.out_features if name == last else units
        setattr(model.get_submodule(above), own_name, nn.Linear(inputs, outputs))
        inputs = outputs
    for part in model.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight)
            assert part.bias is not None
            nn.init.normal_(part.bias, std=0.1)
        if isinstance(part, nn.BatchNorm2d):
            for name, low in (("weight", 0.5), ("running_var", 0.5), ("running_mean", -1.0)):
                nn.init.uniform_(getattr(part, name), low, low + 1)


def images(network: TrainedNetwork, count: int = 4) -> torch.Tensor:
    """uint8 N×H×W×3, of the size that its evaluation takes."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(
        0, 256, (count, *network.evaluated_size, 3), dtype=torch.uint8, generator=generator
    )


def logits(network: TrainedNetwork, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the network takes of the images, and what it makes of that."""
    (inputs,) = network.viewer(1)(pixels)
    with torch.inference_mode():
        return inputs, network.model(inputs)
