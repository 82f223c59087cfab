"""The blog's CIFAR-10 job as one plain PyTorch script: DataLoader, PIL, fp32, one process.

    python -m benchmarks.rivals.blog_pytorch FOLDER --workers 2 --warmup-steps 50 --steps 200

Prints images a second over `--steps` steps, by the wall clock, loading included.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset


class Folder(Dataset[tuple[torch.Tensor, int]]):
    """Images below FOLDER/train/CLASS, decoded by PIL at each access."""

    def __init__(self, root: Path) -> None:
        classes = sorted(path.name for path in (root / "train").iterdir())
        self._files = [
            (path, label)
            for label, name in enumerate(classes)
            for path in sorted((root / "train" / name).iterdir())
        ]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self._files[index]
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float(), label


class Network(nn.Module):
    """The blog's network, written down as one does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 48, 3, stride=2), nn.BatchNorm2d(48, 1e-3, 0.01)
        self.conv2, self.norm2 = nn.Conv2d(48, 96, 3, padding=1), nn.BatchNorm2d(96, 1e-3, 0.01)
        self.conv3 = nn.Conv2d(96, 192, 3, padding=1)
        self.conv4 = nn.Conv2d(192, 192, 3, padding=1)
        self.conv5, self.norm5 = nn.Conv2d(192, 256, 3, padding=1), nn.BatchNorm2d(256, 1e-3, 0.01)
        self.dense = nn.Sequential(
            *(nn.Linear(256, 512), nn.Tanh(), nn.Dropout(0.5)),
            *(nn.Linear(512, 256), nn.Tanh(), nn.Dropout(0.5)),
            nn.Linear(256, 10),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(F.max_pool2d(F.relu(self.conv1(F.pad(x, (0, 1, 0, 1)))), 2, 2))
        x = self.norm2(F.max_pool2d(F.relu(self.conv2(x)), 3, 2))
        x = F.relu(self.conv4(F.relu(self.conv3(x))))
        x = self.norm5(F.max_pool2d(F.relu(self.conv5(x)), 3, 2))
        logits: torch.Tensor = self.dense(x.flatten(1))
        return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--warmup-steps", type=int, default=50)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    loader = DataLoader(
        Folder(options.folder),
        batch_size=128,
        shuffle=True,
        num_workers=options.workers,
        drop_last=True,
    )
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, eps=1e-7)
    begin = time.perf_counter()
    for step, (images, labels) in enumerate(loader):
        if step == options.warmup_steps:
            begin = time.perf_counter()
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        if step + 1 == options.warmup_steps + options.steps:
            break
    print(options.steps * 128 / (time.perf_counter() - begin))


if __name__ == "__main__":
    main()
