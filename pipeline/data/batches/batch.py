"""What every reader's batches have in common, and the batch in host memory."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import torch

from pipeline.data.augment.crops import CropWindows
from pipeline.data.order.partition import Indices
from pipeline.data.readers.reading import ReadCost


class Batch(Protocol):
    """What training works on: `num_valid` rows are samples, those behind them padding."""

    samples: Indices
    """Numbers in the split, int64 N."""
    num_valid: int

    @property
    def crop_windows(self) -> CropWindows | None:
        """Which crops of the images the samples are; None: all, in order."""

    def to(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Images uint8 M×H×W×3 and labels int64 N on `device`, without waiting for them."""


class Batches(Protocol):
    """Iterates over batches; to be left when no more are wanted."""

    @property
    def queued_batches(self) -> int:
        """Batches that are ready now."""

    def take_cost(self) -> ReadCost:
        """What reading cost since the last call."""

    def __next__(self) -> Batch: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@dataclass(kw_only=True, slots=True)
class HostBatch:
    """Images in host memory that the loader owns: valid until the next batch is asked for.

    Shapes: `images` uint8 N×H×W×3, `labels` int64 N, `samples` int64 N (numbers in the split).
    Rows from `num_valid` on are padding.
    """

    images: torch.Tensor
    labels: torch.Tensor
    samples: Indices
    num_valid: int
    crop_windows: None = None
    copied: torch.cuda.Event | None = None
    """Set while a copy to the device may still be reading; the loader waits for it."""

    def to(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """`images` and `labels` on `device`, without waiting for the copy.

        On the CPU these are the batch's own tensors: `images` is valid as long as the batch is.
        """
        if device.type != "cuda":
            return self.images, self.labels
        images = self.images.to(device, non_blocking=True)
        labels = self.labels.to(device, non_blocking=True)
        self.copied = torch.cuda.Event(blocking=True)  # to sleep, not to spin, until it happens
        self.copied.record()
        return images, labels
