"""The network of 2012 in eager PyTorch, written as anybody would, and a plain training step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F


class Network(nn.Module):
    """`pipeline.model.alexnet` of torch's own operations; the weights of one fit the other.

    Two columns as groups; in the first layer ReLU behind norm and pool. Its response norm is
    torch's, on each column's channels. So is its dropout: what stays is scaled in training.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.norm = nn.LocalResponseNorm(size=5, alpha=1e-4, beta=0.75, k=2)
        self.conv1 = nn.Conv2d(3, 96, 11, stride=4)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2)
        self.fc6 = nn.Linear(256 * 6 * 6, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images N×3×224×224 to logits N×num_classes."""
        maps = self.conv1(F.pad(images, (0, 3, 0, 3)))
        maps = F.relu(F.max_pool2d(self._normalize(maps), 3, 2))
        maps = F.max_pool2d(self._normalize(F.relu(self.conv2(maps))), 3, 2)
        maps = F.relu(self.conv3(maps))
        maps = F.relu(self.conv4(maps))
        maps = F.max_pool2d(F.relu(self.conv5(maps)), 3, 2)
        units = F.dropout(F.relu(self.fc6(maps.flatten(1))), 0.5, self.training)
        units = F.dropout(F.relu(self.fc7(units)), 0.5, self.training)
        logits: torch.Tensor = self.fc8(units)
        return logits

    def _normalize(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.norm(column) for column in maps.chunk(2, dim=1)], dim=1)


def plain_step(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    precision: torch.dtype,
    learning_rate: float,
    compiler: str | None = None,
) -> Callable[[], None]:
    """A training step as in any tutorial, channels-last and under autocast.

    Images float32 N×3×224×224, labels int64 N. `compiler` is a backend of torch.compile.
    """
    kind = images.device.type
    model.to(images.device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=learning_rate, momentum=0.9, weight_decay=5e-4
    )
    scaler = torch.amp.GradScaler(kind, enabled=precision == torch.float16)
    forward = model if compiler is None else torch.compile(model, backend=compiler)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(kind, precision, enabled=precision != torch.float32):
            loss = F.cross_entropy(forward(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step
