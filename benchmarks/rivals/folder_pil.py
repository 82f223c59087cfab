"""A folder of images as most scripts read it: torch's DataLoader with 2 workers, and Pillow.

What torchvision's ImageFolder with RandomResizedCrop and RandomHorizontalFlip does, written with
Pillow alone. Pixels stay uint8, since everyone leaves the rest to the device. `raw256` reads .npy
files.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.rivals.crops import augment, crop, open_rgb
from benchmarks.rivals.rounds import BATCH_SIZE, Epoch, Setting, Task, check_batch, serve


class Folder(Dataset[tuple[torch.Tensor, int]]):
    """The samples, over and over, decoded at each access."""

    def __init__(self, samples: list[tuple[Path, int]], repeats: int, setting: Setting) -> None:
        self._samples = samples
        self._repeats = repeats
        self._setting = setting

    def __len__(self) -> int:
        return len(self._samples) * self._repeats

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self._samples[index % len(self._samples)]
        if self._setting == "raw256":
            return torch.from_numpy(crop(np.load(path))), label
        return torch.from_numpy(augment(open_rgb(path), self._setting)), label


def open_epoch(task: Task) -> Epoch:
    samples = task.samples()
    if task.setting == "raw256":
        samples = _save_pixels(samples, task.scratch)
    loader = DataLoader(
        Folder(samples, task.repeats(len(samples)), task.setting),
        batch_size=BATCH_SIZE,
        shuffle=True,
        num_workers=task.num_workers,
        persistent_workers=True,
    )
    return lambda: sum(check_batch(images, labels) for images, labels in loader)


def _save_pixels(samples: list[tuple[Path, int]], scratch: Path) -> list[tuple[Path, int]]:
    saved = []
    for number, (path, label) in enumerate(samples):
        saved.append((scratch / f"{number:06d}.npy", label))
        np.save(saved[-1][0], np.asarray(open_rgb(path)))
    return saved


if __name__ == "__main__":
    serve(__doc__, open_epoch, ["torch", "pillow"])
