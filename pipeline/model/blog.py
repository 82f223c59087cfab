"""The networks of the 2021 blog post "AlexNet in Keras and PyTorch" this project grew out of."""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.nn import functional as F


class AlexNetCifar(nn.Module):
    """Its CIFAR-10 network: 1,249,866 trainable parameters at ten classes.

    Initialised as Keras does: Glorot uniform weights (Glorot and Bengio 2010, equation 16), biases
    0. BatchNorm's epsilon 1e-3 is Keras' default, and so is a momentum of 0.01 in torch's terms.
    Where the post has ReLU before a pool it stands behind it: values and gradients are the same,
    and it has a quarter of the elements to go through.
    """

    def __init__(self, num_classes: int, dropout: float, batch_norm_momentum: float) -> None:
        super().__init__()
        batch_norm = functools.partial(nn.BatchNorm2d, eps=1e-3, momentum=batch_norm_momentum)
        self.features = nn.Sequential(
            SamePadded2(nn.Conv2d(3, 48, 3, stride=2)),
            nn.MaxPool2d(2, 2),
            nn.ReLU(),
            batch_norm(48),
            nn.Conv2d(48, 96, 3, padding=1),
            nn.MaxPool2d(3, 2),
            nn.ReLU(),
            batch_norm(96),
            nn.Conv2d(96, 192, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(192, 192, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(192, 256, 3, padding=1),
            nn.MaxPool2d(3, 2),
            nn.ReLU(),
            batch_norm(256),
        )
        self.classifier = nn.Sequential(
            nn.Linear(256, 512),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(512, 256),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(256, num_classes),
        )
        self.apply(_init_like_keras)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images N×3×32×32 to logits N×num_classes."""
        features: torch.Tensor = self.features(images)
        logits: torch.Tensor = self.classifier(features.flatten(1))
        return logits


class SamePadded2(nn.Module):
    """A 3×3 convolution of stride 2 with TensorFlow's `same` padding: 1 right and 1 below."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """N×C×H×W with even H and W to N×K×H/2×W/2."""
        output: torch.Tensor = self.convolution(F.pad(images, (0, 1, 0, 1)))
        return output


def _init_like_keras(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
