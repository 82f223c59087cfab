"""What all networks have in common."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn


class Network(nn.Module):
    """Images N×3×S×S to logits N×num_classes."""

    image_size: ClassVar[int]
    """S."""

    @property
    def first_convolution(self) -> nn.Conv2d:
        """The layer that sees the pixels; its rates can be scheduled apart."""
        return next(module for module in self.modules() if isinstance(module, nn.Conv2d))

    def forward(self, images: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        """`keys`, int64 N, decide what dropout drops; training needs them."""
        raise NotImplementedError
