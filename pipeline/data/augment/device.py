"""The way from the host to the device."""

from __future__ import annotations

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
