"""The optimizer of a model and its loss."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer over all parameters; only weights (two or more dimensions) decay.

    `adam` adds the decay to the gradient (Kingma and Ba, arXiv 1412.6980), `adamw` takes it off the
    weights (arXiv 1711.05101). Keras adds epsilon before the second moment's bias correction and
    `adam` behind it, which only gradients as small as epsilon can tell.
    """
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if config.name == "sgd":
        optimizer = torch.optim.SGD(
            groups,
            lr=config.learning_rate,
            momentum=config.momentum,
            nesterov=config.nesterov,
            fused=True,
        )
        if config.momentum > 0:
            _start_momentum(optimizer)
        return optimizer
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    betas = (config.beta1, config.beta2)
    return kind(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon, fused=True)


def _start_momentum(optimizer: torch.optim.SGD) -> None:
    """Begin all velocities at 0, which gives what torch's own beginning in the first step does.

    But in fp16 the first step may be skipped, and torch's fused SGD then keeps the memory it has
    not filled yet as the velocities (seen in torch 2.13).
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def cross_entropy_sum(
    logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float
) -> torch.Tensor:
    """Cross-entropy in fp32, summed over the batch: logits N×C, labels int64 N, a scalar out."""
    return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing, reduction="sum")
