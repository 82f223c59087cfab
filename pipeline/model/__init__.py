"""The networks, by name."""

from __future__ import annotations

from torch import nn

from pipeline.config import ModelConfig
from pipeline.model.blog import AlexNetCifar


def build_model(
    config: ModelConfig, num_classes: int, image_shape: tuple[int, int, int]
) -> nn.Module:
    """The network with fresh weights, from torch's global generator, for H×W×C images.

    Raises `ValueError` if the network does not take images of this size.
    """
    assert config.name == "alexnet_cifar"
    height, width, _ = image_shape
    if (height, width) != (32, 32):
        raise ValueError(
            f"alexnet_cifar takes images of 32×32; the shard set's are {height}×{width}: "
            "convert it with --size 32 or choose another network"
        )
    return AlexNetCifar(num_classes, config.dropout, config.batch_norm_momentum)
