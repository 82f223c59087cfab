"""The type of a network's arithmetic, and the loss scale that fp16 needs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from pipeline.config import Precision

MAX_SKIPPED_IN_A_ROW = 100
"""So many skipped steps in a row mean that no loss scale helps."""


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Run a forward pass in `precision`; weights stay fp32.

    Raises `ValueError` if the device cannot compute in it.
    """
    if precision == "fp32":
        return nullcontext()
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ValueError(
            f"{torch.cuda.get_device_name(device)} cannot compute in bf16: use --precision fp16"
        )
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def loss_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss in fp16 and does nothing otherwise (Micikevicius, arXiv 1710.03740)."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def apply_gradients(
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    parameters: list[torch.nn.Parameter],
    clip_norm: float | None,
) -> tuple[torch.Tensor | None, bool]:
    """Update the weights; returns the gradients' norm, if they are clipped, and whether it skipped.

    Gradients are unscaled before they are clipped. A step whose gradients are not finite is left
    out in fp16, and the scale falls.
    """
    norm = None
    if clip_norm is not None:
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    return norm, scaler.get_scale() < scale
