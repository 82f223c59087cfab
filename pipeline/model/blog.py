"""The networks of the 2021 blog post "AlexNet in Keras and PyTorch" this project grew out of."""

from __future__ import annotations

import functools
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.model.dropout import Dropout, KeyedSequential
from pipeline.model.response_norm import Norm, NormalizeAndPool
from pipeline.model.single_column import SingleColumn, last_three, wide_classifier

_NORM = Norm(num_columns=1, relu_first=True, alpha=1e-4 / 5)
"""The post's alpha is torch's, 1e-4, of which the square of each of five maps has a fifth."""


class AlexNetSingle(SingleColumn):
    """Its PyTorch network: 62,378,344 parameters at 1000 classes.

    The layers of 2012 without columns: a kernel sees all maps, response norms go over all of them.
    """

    image_size: ClassVar[int] = 227

    def __init__(self, num_classes: int, dropout: float) -> None:
        features = nn.Sequential(
            nn.Conv2d(3, 96, 11, stride=4),
            NormalizeAndPool(_NORM),
            nn.Conv2d(96, 256, 5, padding=2),
            NormalizeAndPool(_NORM),
            *last_three(256, 384, 384, 256),
        )
        super().__init__(features, wide_classifier(num_classes, dropout))
        # As the post has them in PyTorch; linear layers it leaves as torch makes them.
        convolutions = [one for one in features if isinstance(one, nn.Conv2d)]
        for convolution, bias in zip(convolutions, (0.0, 1.0, 0.0, 1.0, 1.0), strict=True):
            nn.init.normal_(convolution.weight, std=0.01)
            assert convolution.bias is not None
            nn.init.constant_(convolution.bias, bias)


class _Keras(SingleColumn):
    """What its Keras networks share.

    Keras initialises with Glorot uniform weights (Glorot and Bengio 2010, equation 16) and biases
    of 0. BatchNorm's epsilon 1e-3 is its default, and so is a momentum of 0.01 in torch's terms.
    """

    def __init__(
        self,
        features: nn.Sequential,
        widths: tuple[int, int, int, int],
        activation: type[nn.Module],
        dropout: float,
    ) -> None:
        inputs, first, second, num_classes = widths
        classifier = KeyedSequential(
            nn.Linear(inputs, first),
            activation(),
            Dropout(dropout, layer=0),
            nn.Linear(first, second),
            activation(),
            Dropout(dropout, layer=1),
            nn.Linear(second, num_classes),
        )
        super().__init__(features, classifier)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)


class AlexNetBN(_Keras):
    """Its Keras network, with BatchNorm behind the first two pools instead of response norms.

    50,845,416 parameters at 1000 classes as Keras counts, which is with BatchNorm's moments.
    """

    image_size: ClassVar[int] = 224

    def __init__(self, num_classes: int, dropout: float, batch_norm_momentum: float) -> None:
        batch_norm = functools.partial(nn.BatchNorm2d, eps=1e-3, momentum=batch_norm_momentum)
        features = nn.Sequential(
            nn.Conv2d(3, 96, 11, stride=4),
            nn.MaxPool2d(3, 2),
            nn.ReLU(),
            batch_norm(96),
            nn.Conv2d(96, 256, 5, padding=2),
            nn.MaxPool2d(3, 2),
            nn.ReLU(),
            batch_norm(256),
            *last_three(256, 384, 384, 256),
        )
        super().__init__(features, (256 * 5 * 5, 4096, 4096, num_classes), nn.ReLU, dropout)


class AlexNetCifar(_Keras):
    """Its CIFAR-10 network: 1,249,866 trainable parameters at ten classes."""

    image_size: ClassVar[int] = 32

    def __init__(self, num_classes: int, dropout: float, batch_norm_momentum: float) -> None:
        batch_norm = functools.partial(nn.BatchNorm2d, eps=1e-3, momentum=batch_norm_momentum)
        features = nn.Sequential(
            SamePadded2(nn.Conv2d(3, 48, 3, stride=2)),
            nn.MaxPool2d(2, 2),
            nn.ReLU(),
            batch_norm(48),
            nn.Conv2d(48, 96, 3, padding=1),
            nn.MaxPool2d(3, 2),
            nn.ReLU(),
            batch_norm(96),
            *last_three(96, 192, 192, 256),
            batch_norm(256),
        )
        super().__init__(features, (256, 512, 256, num_classes), nn.Tanh, dropout)


class SamePadded2(nn.Module):
    """A 3×3 convolution of stride 2 with TensorFlow's `same` padding: 1 right and 1 below."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """N×C×H×W with even H and W to N×K×H/2×W/2."""
        output: torch.Tensor = self.convolution(F.pad(images, (0, 1, 0, 1)))
        return output
