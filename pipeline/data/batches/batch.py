"""A batch, and what iterates over batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from pipeline.data.augment.crops import CropWindows
from pipeline.data.order.partition import Indices
from pipeline.data.readers.reading import ReadCost


@dataclass(kw_only=True, slots=True)
class Batch:
    """What training works on: `num_valid` rows are samples, those behind them padding.

    Images in host memory are the loader's, and valid until the next batch is asked for.
    """

    images: torch.Tensor
    """uint8 M×H×W×3, in host memory or on the device."""
    labels: torch.Tensor
    """int64 N."""
    samples: Indices
    """Numbers in the split, int64 N."""
    num_valid: int
    crop_windows: CropWindows | None = None
    """Which crops of the images the samples are; None: all, in order."""
    copied: torch.cuda.Event | None = None
    """Set while a copy to the device may still be reading; the loader waits for it."""

    def to(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """`images` and `labels` on `device`, without waiting for the copy.

        Those that are there already are the batch's own.
        """
        if self.images.device.type == device.type:
            return self.images, self.labels
        images = self.images.to(device, non_blocking=True)
        labels = self.labels.to(device, non_blocking=True)
        self.copied = torch.cuda.Event(blocking=True)  # to sleep, not to spin, until it happens
        self.copied.record()
        return images, labels


class Batches(Iterator[Batch], Protocol):
    """The batches of a rank, in order."""

    @property
    def queued_batches(self) -> int:
        """Batches that are ready now."""

    def take_cost(self) -> ReadCost:
        """What reading cost since the last call."""
