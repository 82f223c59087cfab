"""One copy of the model on one rank, and the update that keeps all copies equal."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.config import Config
from pipeline.distributed import World
from pipeline.optim import build_optimizer, cross_entropy_sum, set_learning_rate
from pipeline.precision import apply_gradients, autocast, loss_scaler

_HAS_NEW_NAME = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_SYNC_BUFFERS = "forward_sync_buffers" if _HAS_NEW_NAME else "broadcast_buffers"
"""DDP's option to copy rank 0's buffers in every forward pass; torch 2.13 has renamed it."""

_Buckets = torch.futures.Future[torch.Tensor]


class Replica:
    """Model, optimizer and loss scaler of this rank.

    After every step all ranks hold the same bits: gradients are averaged by DDP, and the moments
    of BatchNorm, which each rank takes from its own images, by one small reduction of our own.
    """

    def __init__(self, model: nn.Module, config: Config, world: World) -> None:
        self.model = model.to(world.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._config = config
        self._world = world
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._moments = [b for b in model.buffers() if b.is_floating_point()]
        self._optimizer = build_optimizer(model, config.optim)
        self._scaler = loss_scaler(config.precision, world.device)
        self._parallel = self._distribute()
        self.when_gradients_are_ready: Callable[[], None] = lambda: None
        """Called in each step when only the averaging of gradients is left of the backward pass."""

    def _distribute(self) -> nn.Module:
        if self._world.size == 1:
            return self.model
        parallel = DistributedDataParallel(
            self.model,
            bucket_cap_mb=self._config.distributed.bucket_bytes / (1 << 20),
            gradient_as_bucket_view=True,
            **{_SYNC_BUFFERS: False},  # type: ignore[arg-type]
        )
        # A lambda, because DDP takes no hook whose annotations are still text.
        parallel.register_comm_hook(self, lambda replica, bucket: _average_bucket(replica, bucket))
        return parallel

    @property
    def loss_scale(self) -> float | None:
        """Of fp16; None in other precisions."""
        return self._scaler.get_scale() if self._scaler.is_enabled() else None

    def set_learning_rate(self, learning_rate: float) -> None:
        set_learning_rate(self._optimizer, learning_rate)

    def add_gradients(
        self, inputs: torch.Tensor, labels: torch.Tensor, *, step_samples: int, is_last: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward and backward pass of one micro-batch: inputs N×3×H×W, labels int64 N.

        `step_samples` counts the samples of the step on all ranks: each weighs the same, however
        unequally a ragged batch is divided. Returns the summed loss and the logits N×C, detached.
        """
        with self._synchronization(is_last):
            with autocast(self._config.precision, self._world.device):
                logits = self._parallel(inputs)
            loss = cross_entropy_sum(logits, labels, self._config.optim.label_smoothing)
            moments = self._start_averaging_moments() if is_last else None
            # DDP divides by the number of ranks; the mean over the step's samples is meant.
            self._scaler.scale(loss * (self._world.size / step_samples)).backward()
        if moments is not None:
            self._finish_averaging_moments(*moments)
        return loss.detach(), logits.detach()

    def _synchronization(self, is_last: bool) -> AbstractContextManager[object]:
        if is_last or not isinstance(self._parallel, DistributedDataParallel):
            return nullcontext()
        return self._parallel.no_sync()

    def _start_averaging_moments(self) -> tuple[dist.Work, torch.Tensor] | None:
        if self._world.size == 1 or not self._moments:
            return None
        flat = torch.cat([moment.flatten() for moment in self._moments])
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        return work, flat

    def _finish_averaging_moments(self, work: dist.Work, flat: torch.Tensor) -> None:
        work.wait()
        flat /= self._world.size
        parts = flat.split([moment.numel() for moment in self._moments])
        for moment, part in zip(self._moments, parts, strict=True):
            moment.copy_(part.view_as(moment))

    def update(self) -> tuple[torch.Tensor | None, bool]:
        """Apply the gradients and clear them; see `precision.apply_gradients`."""
        outcome = apply_gradients(
            self._optimizer, self._scaler, self._parameters, self._config.optim.clip_norm
        )
        self._optimizer.zero_grad(set_to_none=False)
        return outcome

    def warm_up(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Run a step that leaves no trace.

        DDP orders its buckets anew after its first backward pass, and with them the additions in
        the reduction. Behind a warm-up a resumed run has the order of one that never stopped.
        """
        state = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.add_gradients(inputs, labels, step_samples=len(inputs), is_last=True)
        self._optimizer.zero_grad(set_to_none=False)
        self.model.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """Weights under the plain model's names, optimizer and scaler: tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`; raises `ValueError` if it is another network's."""
        load_weights(self.model, state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])

    @torch.no_grad()
    def is_finite(self) -> bool:
        """Whether every weight is a number. Waits for the device."""
        finite = torch.stack([parameter.isfinite().all() for parameter in self._parameters])
        return bool(finite.all())


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Put a checkpoint's weights into `model`; raises `ValueError` if it is another network's."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(
            f"the checkpoint's weights do not fit this network ({reason}): use the recipe and "
            "shard set it was trained with"
        ) from None


def _average_bucket(
    replica: Replica,
    bucket: dist.GradBucket,  # type: ignore[name-defined]  # not exported
) -> _Buckets:
    """DDP's communication hook: the mean over the ranks, and a call before the last bucket."""
    if bucket.is_last():
        replica.when_gradients_are_ready()
    gradients = bucket.buffer().div_(dist.get_world_size())
    work = dist.all_reduce(gradients, async_op=True)
    assert work is not None
    future: _Buckets = work.get_future().then(lambda done: done.value()[0])
    return future
