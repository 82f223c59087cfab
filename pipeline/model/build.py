"""The networks, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

import torch
from torch import nn

from pipeline.config.model import ModelConfig, ModelName
from pipeline.model.alexnet import AlexNet2012
from pipeline.model.blog import AlexNetBN, AlexNetCifar, AlexNetSingle
from pipeline.model.columns import BOTH, Columns, parts_of
from pipeline.model.network import Network
from pipeline.model.single_column import AlexNet2014


def build_model(
    config: ModelConfig, num_classes: int, input_size: tuple[int, int], columns: Columns = BOTH
) -> Network:
    """The network with fresh weights, from torch's global generator, for inputs of height × width.

    A rank of one column gets its part of the weights that both columns have on one rank. Raises
    `ValueError` if the network does not take inputs of this size.
    """
    network = _build(config, num_classes, BOTH)
    size = network.image_size
    if input_size != (size, size):
        raise ValueError(
            f"{config.name} takes images of {size}×{size}, and gets {input_size[0]}×"
            f"{input_size[1]}: convert the shard set with another --size, set augment.crop_pixels "
            f"to {size}, or choose another network"
        )
    if columns.column is None:
        return network
    part = _build(config, num_classes, columns)
    part.load_state_dict(parts_of(network.state_dict(), columns.column))
    return part


def load_weights(
    model: nn.Module,
    weights: Mapping[str, torch.Tensor],
    column: int | None,
    *,
    fresh: str | None = None,
) -> None:
    """Put given weights, or one column's part of them, into `model`.

    The layer `fresh` is not among them, and stays. Raises `ValueError` if they are another
    network's.
    """
    own = model.state_dict()
    kept = {name: own[name] for name in own if name.rpartition(".")[0] == fresh}
    try:
        model.load_state_dict(kept | parts_of(weights, column))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(
            f"the checkpoint's weights do not fit this network ({reason}): use the recipe and "
            "shard set it was trained with"
        ) from None


def image_size(name: ModelName) -> int:
    """Height and width of what the network takes."""
    return empty_model(ModelConfig(name=name), 1).image_size


def empty_model(config: ModelConfig, num_classes: int) -> Network:
    """The network with both columns, on torch's meta device: names and shapes without values."""
    with torch.device("meta"):
        return _build(config, num_classes, BOTH)


def _build(config: ModelConfig, num_classes: int, columns: Columns) -> Network:
    match config.name:
        case "alexnet_2012":
            return AlexNet2012(num_classes, config, columns)
        case "alexnet_2014":
            return AlexNet2014(num_classes, config.dropout)
        case "alexnet_single":
            return AlexNetSingle(num_classes, config.dropout)
        case "alexnet_bn":
            return AlexNetBN(num_classes, config.dropout, config.batch_norm_momentum)
        case "alexnet_cifar":
            return AlexNetCifar(num_classes, config.dropout, config.batch_norm_momentum)
        case unknown:
            assert_never(unknown)
