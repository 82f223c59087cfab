"""What every reader yields, and the way to the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch


def to_device(array: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """A fresh array as a tensor on `device`, without waiting for the copy.

    A GPU copies by itself from pinned memory only; for any other the host would wait.
    """
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(kw_only=True, slots=True)
class HostBatch:
    """Images in host memory that the loader owns: valid until the next batch is asked for.

    Shapes: `images` uint8 N×H×W×3, `labels` int64 N, `samples` int64 N (numbers in the split).
    Rows from `num_valid` on are padding.
    """

    images: torch.Tensor
    labels: torch.Tensor
    samples: npt.NDArray[np.int64]
    num_valid: int
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
