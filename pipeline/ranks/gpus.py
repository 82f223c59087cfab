"""Why the GPUs of this host cannot be computed on, and what to do about it."""

from __future__ import annotations

import ctypes

import torch

_DRIVER = "libcuda.so.1"
"""NVIDIA's driver brings it."""


def gpu_fault() -> str | None:
    """One sentence; None: torch finds GPUs."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} computes on CPUs alone: install torch for CUDA"
    if (fault := driver_fault()) is not None:
        return fault
    if not torch.cuda.is_available():
        return "torch finds no GPU: call nvidia-smi, and look at CUDA_VISIBLE_DEVICES"
    return None


def driver_fault(library: str = _DRIVER) -> str | None:
    """None: the driver is new enough for torch, or there is none at all."""
    wanted, known = torch.version.cuda, _newest_cuda(library)
    if wanted is None or known is None or torch.cuda.is_available():
        return None
    if known >= tuple(map(int, wanted.split("."))):
        return None
    newest = ".".join(map(str, known))
    return (
        f"the NVIDIA driver knows CUDA up to {newest}, and torch {torch.__version__} wants "
        f"{wanted}: update the driver, or install a torch for CUDA {newest}"
    )


def _newest_cuda(library: str) -> tuple[int, int] | None:
    """Major and minor number that the driver has; None: there is no driver."""
    found = ctypes.c_int()
    try:
        is_known = ctypes.CDLL(library).cuDriverGetVersion(ctypes.byref(found)) == 0
    except (OSError, AttributeError):
        return None
    return (found.value // 1000, found.value % 1000 // 10) if is_known else None
