"""What all networks have in common."""

from __future__ import annotations

from typing import ClassVar, Self, assert_never

import torch
from torch import nn

from pipeline.config.init import Frozen


class Network(nn.Module):
    """Images N×3×S×S to logits N×num_classes."""

    image_size: ClassVar[int]
    """S."""
    frozen: tuple[nn.Module, ...] = ()
    """Layers that training leaves as they are."""

    @property
    def first_convolution(self) -> nn.Conv2d:
        """The layer that sees the pixels; its rates can be scheduled apart."""
        return next(module for module in self.modules() if isinstance(module, nn.Conv2d))

    @property
    def last_layer(self) -> str:
        """Name of the layer that gives the logits."""
        names: list[str] = [
            name for name, part in self.named_modules() if isinstance(part, nn.Linear)
        ]
        return names[-1]

    def freeze(self, layers: Frozen) -> None:
        """Let these layers stay as they are: without gradients, and in evaluation mode for good.

        BatchNorm then normalizes by its moments, and no batch moves them.
        """
        match layers:
            case "none":
                kinds: tuple[type[nn.Module], ...] = ()
            case "conv":
                kinds = (nn.Conv2d, nn.BatchNorm2d)
            case unknown:
                assert_never(unknown)
        self.frozen = tuple(part for part in self.modules() if isinstance(part, kinds))
        for part in self.frozen:
            part.requires_grad_(False)
        self.train(self.training)

    def moments(self) -> list[torch.Tensor]:
        """Those of BatchNorm that batches move."""
        layers = (part for part in self.modules() if part not in self.frozen)
        buffers = (buffer for layer in layers for buffer in layer.buffers(recurse=False))
        return [buffer for buffer in buffers if buffer.is_floating_point()]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def forward(self, images: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        """`keys`, int64 N, decide what dropout drops; training needs them."""
        raise NotImplementedError
