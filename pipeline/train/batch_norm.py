"""Whether every part of a batch is large enough for a network's BatchNorm."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
from torch import nn

from pipeline.data.open import BatchPlan
from pipeline.model.network import Network

_Layers = nn.BatchNorm1d | nn.BatchNorm2d


def least_values(model: Network, size: tuple[int, int]) -> int | None:
    """The fewest values of a channel that a BatchNorm sees of one image of height × width.

    None: the network has no BatchNorm, or it is frozen. Weights and moments are left as they are.
    """
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, _Layers) and layer not in model.frozen
    ]
    if not layers:
        return None
    found: list[int] = []

    def note(_layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        found.append(inputs[0][0, 0].numel())

    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    was_training = model.training
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, 3, *size, device=next(model.parameters()).device))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return min(found)


def check_micro_batches(plan: BatchPlan, target_steps: int, least: int | None) -> None:
    """Raise `ValueError` if a rank's part of some batch of the run gives BatchNorm one value.

    `least` is what `least_values` says. A deviation needs two; torch stops at the first such part,
    which may be the last of the first epoch.
    """
    if least is None or _suits(plan, target_steps, least):
        return
    parts = f"{plan.num_replicas} replicas × {plan.accumulation_steps} accumulation steps"
    what = f"global_batch_size {plan.global_batch_size}"
    if plan.local_batch_size * least > 1:
        what = f"the epoch's last batch, of {plan.samples_in_step(plan.steps_per_epoch - 1)},"
    remedies = ", or ".join(_remedies(plan, target_steps, least)) or "train on fewer ranks"
    raise ValueError(
        f"{what} leaves some of {parts} one image, and BatchNorm on maps of 1×1 needs two: "
        f"{remedies}"
    )


def _suits(plan: BatchPlan, target_steps: int, least: int) -> bool:
    parts = plan.num_replicas * plan.accumulation_steps
    smallest = plan.local_batch_size
    if target_steps >= plan.steps_per_epoch:
        smallest = min(smallest, plan.samples_in_step(plan.steps_per_epoch - 1) // parts)
    return smallest * least > 1


def _remedies(plan: BatchPlan, target_steps: int, least: int) -> Iterator[str]:
    """Options that would do, each alone."""

    def suits(**changes: int | bool) -> bool:
        with contextlib.suppress(ValueError):
            return _suits(dataclasses.replace(plan, **changes), target_steps, least)  # type: ignore[arg-type]
        return False

    if suits(drop_last=True):
        yield "use --data.drop_last true"
    parts, size = plan.num_replicas * plan.accumulation_steps, plan.global_batch_size
    smaller = next((n for n in range(size - parts, 0, -parts) if suits(global_batch_size=n)), None)
    larger = range(size + parts, plan.num_samples + 1, parts)
    sizes = [smaller, next((n for n in larger if suits(global_batch_size=n)), None)]
    if found := [str(one) for one in sizes if one is not None]:
        yield f"--global_batch_size {' or '.join(found)}"
    fewer = range(plan.accumulation_steps - 1, 0, -1)
    if steps := next((n for n in fewer if suits(accumulation_steps=n)), None):
        yield f"--accumulation_steps {steps}"
