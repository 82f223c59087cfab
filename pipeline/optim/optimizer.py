"""The optimizer of a network, its state under the parameters' names, and the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.config.optim import OptimConfig
from pipeline.model.columns import BOTH, Columns, has_part, part_of, whole_of
from pipeline.model.network import Network
from pipeline.optim.schedule import Rates


def build_optimizer(
    model: Network, config: OptimConfig, early_ratio: float = 1.0
) -> torch.optim.Optimizer:
    """The optimizer over all parameters, in a group for each field of `Rates`, of that name.

    Layers before the last one have `early_ratio` times the rate; if that is not 1, the last one has
    groups of its own, `last_weights` and `last_biases`. Frozen parameters are in none.

    Only weights (two or more dimensions) decay. `adam` adds the decay to the gradient (Kingma and
    Ba, arXiv 1412.6980), `adamw` takes it off the weights (arXiv 1711.05101). Keras adds epsilon
    before the second moment's bias correction and `adam` behind it, which only gradients as small
    as epsilon can tell.
    """
    groups = _groups(model, config.weight_decay, early_ratio)
    rate, betas = config.learning_rate, (config.beta1, config.beta2)
    match config.name:
        case "sgd":
            optimizer = torch.optim.SGD(
                groups, lr=rate, momentum=config.momentum, nesterov=config.nesterov, fused=True
            )
            if config.momentum > 0:
                _start_momentum(optimizer)
            return optimizer
        case "adam":
            return torch.optim.Adam(groups, lr=rate, betas=betas, eps=config.epsilon, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=config.epsilon, fused=True)
        case unknown:
            assert_never(unknown)


def _groups(model: Network, weight_decay: float, early_ratio: float) -> list[dict[str, Any]]:
    """Each with the field of `Rates` that its rate is of, and the ratio to that."""
    places = dict.fromkeys(model.first_convolution.parameters(), "conv1_")
    groups: dict[str, dict[str, Any]] = {
        name: {"name": name, "params": [], "rate": name, "ratio": early_ratio}
        for name in Rates.__dataclass_fields__
    }
    if early_ratio != 1:
        places |= dict.fromkeys(model.get_submodule(model.last_layer).parameters(), "last_")
        for kind in ("weights", "biases"):
            name = f"last_{kind}"
            groups[name] = {"name": name, "params": [], "rate": kind, "ratio": 1.0}
    for parameter in model.parameters():
        if parameter.requires_grad:
            kind = "weights" if parameter.ndim > 1 else "biases"
            groups[f"{places.get(parameter, '')}{kind}"]["params"].append(parameter)
    return [
        group | {"weight_decay": weight_decay * name.endswith("weights")}
        for name, group in groups.items()
    ]


def _start_momentum(optimizer: torch.optim.SGD) -> None:
    """Begin all velocities at 0, which gives what torch's own beginning in the first step does.

    But in fp16 the first step may be skipped, and torch's fused SGD then keeps the memory it has
    not filled yet as the velocities (seen in torch 2.13).
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def set_rates(optimizer: torch.optim.Optimizer, rates: Rates, config: OptimConfig) -> None:
    """Give each group its learning rate.

    The 2012 update is v ← 0.9 v − rate · gradient, w ← w + v (section 5); torch keeps v / −rate.
    So with `momentum_form` velocity that is rescaled when the rate changes, and v goes on. A rate
    of 0 stops at once, where the original's last small velocity takes ten updates to die out.
    """
    for group in optimizer.param_groups:
        before, now = group["lr"], group["ratio"] * getattr(rates, group["rate"])
        group["lr"] = now
        match config.momentum_form:
            case "gradient":
                pass
            case "velocity":
                if before != now and before * now > 0:
                    for parameter in group["params"]:
                        optimizer.state[parameter]["momentum_buffer"].mul_(before / now)
            case unknown:
                assert_never(unknown)


def optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, columns: Columns = BOTH
) -> dict[str, Any]:
    """The rate of each group, and the tensors of both columns under the parameters' names."""
    return {
        "rates": {group["name"]: group["lr"] for group in optimizer.param_groups},
        "tensors": {
            name: {
                kind: whole_of(name, part, columns)
                for kind, part in optimizer.state[parameter].items()
            }
            for name, parameter in model.named_parameters()
            if parameter in optimizer.state
        },
    }


def load_optimizer_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    column: int | None = None,
) -> None:
    """Go on from an `optimizer_state`; raises `ValueError` if it is another network's."""
    parameters = dict(model.named_parameters())
    held = {name: part for name, part in state["tensors"].items() if has_part(name, column)}
    if unknown := held.keys() - parameters.keys():
        raise ValueError(
            f"the checkpoint's optimizer has a state for {', '.join(sorted(unknown))}, which this "
            "network lacks: use the recipe it was trained with"
        )
    for group in optimizer.param_groups:
        group["lr"] = state["rates"][group["name"]]
    for name, tensors in held.items():
        optimizer.state[parameters[name]] = {
            kind: _laid_out_like(parameters[name], part_of(name, tensor, column))
            for kind, tensor in tensors.items()
        }


def _laid_out_like(parameter: nn.Parameter, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the parameter's shape in the parameter's order of memory.

    torch's fused optimizers go through the memory of both and do not compare their strides.
    """
    if tensor.shape != parameter.shape:
        return tensor
    return torch.empty_like(parameter, requires_grad=False).copy_(tensor)


def cross_entropy_sum(
    logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float
) -> torch.Tensor:
    """Cross-entropy in fp32, summed over the batch: logits N×C, labels int64 N, a scalar out."""
    return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing, reduction="sum")
