"""A network of one convolution."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from pipeline.model.network import Network


class Tiny(Network):
    image_size: ClassVar[int] = 32

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 8, stride=8)
        self.dense = nn.Linear(4 * 4 * 4, num_classes)

    @property
    def first_convolution(self) -> nn.Conv2d:
        return self.convolution

    def forward(self, images: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        logits: torch.Tensor = self.dense(self.convolution(images).relu().flatten(1))
        return logits
