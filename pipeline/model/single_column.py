"""Networks of one column: the frame they share, and Krizhevsky's of 2014.

Where an original has ReLU before a max-pool it stands behind it: values and gradients are the same,
and it has a quarter of the elements to go through.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from pipeline.model.dropout import Dropout, KeyedSequential
from pipeline.model.network import Network


class SingleColumn(Network):
    """Feature maps out of an image, then a classifier of all of them at once."""

    def __init__(self, features: nn.Sequential, classifier: KeyedSequential) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier

    def forward(self, images: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        """Images N×3×S×S and, in training, the dropout keys int64 N, to logits N×num_classes."""
        features: torch.Tensor = self.features(images)
        logits: torch.Tensor = self.classifier(features.flatten(1), keys)
        return logits


def last_three(channels: int, *kernels: int) -> list[nn.Module]:
    """conv3 to conv5, with ReLUs and the last pool."""
    third, fourth, fifth = kernels
    return [
        nn.Conv2d(channels, third, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(third, fourth, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(fourth, fifth, 3, padding=1),
        nn.MaxPool2d(3, 2),
        nn.ReLU(),
    ]


def wide_classifier(num_classes: int, dropout: float) -> KeyedSequential:
    """Two layers of 4096 units, dropout in front of each, for 256 maps of 6×6."""
    return KeyedSequential(
        Dropout(dropout, layer=0),
        nn.Linear(256 * 6 * 6, 4096),
        nn.ReLU(),
        Dropout(dropout, layer=1),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Linear(4096, num_classes),
    )


class AlexNet2014(SingleColumn):
    """Krizhevsky, One weird trick for parallelizing convolutional neural networks, arXiv 1404.5997.

    61,100,840 parameters at 1000 classes. Layers, their initialisation (torch's defaults) and the
    names in the state dict are those of torchvision's `alexnet`, whose published weights fit. Its
    average pool to 6×6 is left out: at 224 pixels, the only size taken here, there are 6×6.
    """

    image_size: ClassVar[int] = 224

    def __init__(self, num_classes: int, dropout: float) -> None:
        features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.MaxPool2d(3, 2),
            nn.ReLU(),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.MaxPool2d(3, 2),
            nn.ReLU(),
            *last_three(192, 384, 256, 256),
        )
        super().__init__(features, wide_classifier(num_classes, dropout))
