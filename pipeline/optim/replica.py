"""One copy of the model, on one rank or on two, and the update that keeps all copies equal.

Longer than 250 lines: what a step does to the copy stands together.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, assert_never

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.config.schema import Config
from pipeline.model.build import load_weights
from pipeline.model.columns import BOTH, Columns, whole_of
from pipeline.model.network import Network
from pipeline.model.response_norm import missing_kernels
from pipeline.optim.optimizer import (
    build_optimizer,
    cross_entropy_sum,
    load_optimizer_state,
    optimizer_state,
    set_rates,
)
from pipeline.optim.precision import Outcome, apply_gradients, autocast, loss_scaler
from pipeline.optim.schedule import Rates
from pipeline.ranks.failure import LostRank, fact_of, waiting_for_ranks
from pipeline.ranks.mesh import Mesh
from pipeline.ranks.world import World

_HAS_NEW_NAME = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_SYNC_BUFFERS = "forward_sync_buffers" if _HAS_NEW_NAME else "broadcast_buffers"
"""DDP's option to copy rank 0's buffers in every forward pass; torch 2.13 has renamed it."""

_MAX_GRAPH_IMAGES = 256
"""Images of a micro-batch, up to which the GPU would wait for launches."""


class Replica:
    """Model, optimizer and loss scaler of this rank.

    After every step all replicas hold the same bits: gradients are averaged by DDP among the ranks
    that hold the same columns, and the moments of BatchNorm, which each rank takes from its own
    images, by one small reduction of our own.
    """

    def __init__(self, model: Network, config: Config, world: World, mesh: Mesh) -> None:
        self.model = model.to(world.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._config = config
        self._world = world
        self.mesh = mesh
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._buffers = list(model.buffers())
        self._buffers_before = [buffer.clone() for buffer in self._buffers]
        self._moments = model.moments()
        self._optimizer = build_optimizer(model, config.optim, config.init.learning_rate_ratio)
        self._precision = config.resolved_precision
        self._scaler = loss_scaler(self._precision, world.device, mesh.same_replica)
        self._ddp = self._distribute()
        # A backward pass may be recorded as a CUDA graph: what it makes is its to overwrite, and is
        # added to zeros. On a CPU, where it is not, that would be two more passes over memory.
        self._adds_to_zeros = world.device.type == "cuda"
        if self._adds_to_zeros and self._ddp is None:  # which else has the gradients in its buckets
            for parameter in self._parameters:
                parameter.grad = torch.zeros_like(parameter)
        self._forward = self._compile(self.model if self._ddp is None else self._ddp)
        self._lost_rank = threading.Event()
        self.when_gradients_are_ready: Callable[[], None] = lambda: None
        """Called in each step when only the averaging of gradients is left of the backward pass."""

    def _distribute(self) -> DistributedDataParallel | None:
        if self.mesh.same_column is None:
            return None
        with waiting_for_ranks():
            parallel = DistributedDataParallel(
                self.model,
                process_group=self.mesh.same_column,
                bucket_cap_mb=self._config.distributed.bucket_bytes / (1 << 20),
                gradient_as_bucket_view=True,
                **{_SYNC_BUFFERS: False},  # type: ignore[arg-type]
            )
        own = weakref.proxy(self)  # DDP keeps the hook where Python finds no circle: none is freed
        # A lambda, because DDP takes no hook whose annotations are still text.
        parallel.register_comm_hook(None, lambda _, bucket: own._average_bucket(bucket))
        return parallel

    def _compile(self, module: nn.Module) -> Callable[..., torch.Tensor]:
        """Fuse small operations; small batches of a GPU are launched as CUDA graphs too."""
        is_cuda = self._world.device.type == "cuda"
        match self._config.compile:
            case "auto":
                has_compiler = missing_kernels(self._world.device) is None
                is_compiled = is_cuda and has_compiler and self.mesh.column is None
            case "on":
                is_compiled = True
            case "off":
                is_compiled = False
            case unknown:
                assert_never(unknown)
        if not is_compiled:
            return module
        parts = self.mesh.num_replicas * self._config.accumulation_steps
        is_small = is_cuda and self._config.global_batch_size // parts <= _MAX_GRAPH_IMAGES
        compiled: Callable[..., torch.Tensor] = torch.compile(
            module, mode="reduce-overhead" if is_small else "default"
        )
        return compiled

    @property
    def loss_scale(self) -> float | None:
        """Of fp16; None in other precisions."""
        return self._scaler.get_scale() if self._scaler.is_enabled() else None

    def set_rates(self, rates: Rates) -> None:
        set_rates(self._optimizer, rates, self._config.optim)

    def add_gradients(
        self,
        inputs: torch.Tensor,
        keys: torch.Tensor,
        labels: torch.Tensor,
        *,
        step_samples: int,
        is_last: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward and backward pass of one micro-batch: inputs N×3×H×W, keys and labels int64 N.

        `step_samples` counts the samples of the step on all replicas: each weighs the same, however
        unequally a ragged batch is divided. Returns the summed loss and the logits N×C, detached.
        """
        sync = contextlib.nullcontext() if is_last or self._ddp is None else self._ddp.no_sync()
        with sync, self._telling_what_broke():
            with autocast(self._precision, self._world.device):
                logits = self._forward(inputs, keys)
            loss = cross_entropy_sum(logits, labels, self._config.optim.label_smoothing)
            with self._averaging_moments() if is_last else contextlib.nullcontext():
                # Replicas are averaged; the mean over the step's samples is meant.
                self._scaler.scale(loss * (self.mesh.num_replicas / step_samples)).backward()
        return loss.detach(), logits.detach()

    @contextlib.contextmanager
    def _telling_what_broke(self) -> Iterator[None]:
        """Raise `LostRank` if DDP fails because the averaging did: its own error has no type."""
        try:
            yield
        except RuntimeError as error:
            if self._lost_rank.is_set():
                raise LostRank(fact_of(error)) from error
            raise

    def _average_bucket(self, bucket: Any) -> torch.futures.Future[torch.Tensor]:
        """DDP's communication hook: the mean over the replicas, and a call before the last one."""
        if bucket.is_last():
            self.when_gradients_are_ready()
        gradients = bucket.buffer().div_(self.mesh.num_replicas)
        with _noting_lost_ranks(self._lost_rank):
            work = dist.all_reduce(gradients, group=self.mesh.same_column, async_op=True)
        assert work is not None
        # It holds nothing that holds a process group: a thread of gloo may free it last, and a
        # group that its own thread frees aborts the process ("Resource deadlock avoided").
        value_of = functools.partial(_reduced, self._lost_rank)
        future: torch.futures.Future[torch.Tensor] = work.get_future().then(value_of)
        return future

    @contextlib.contextmanager
    def _averaging_moments(self) -> Iterator[None]:
        """Average BatchNorm's moments over the replicas, during the backward pass."""
        if self.mesh.same_column is None or not self._moments:
            yield
            return
        flat = torch.cat([moment.flatten() for moment in self._moments])
        with waiting_for_ranks():
            work = dist.all_reduce(flat, group=self.mesh.same_column, async_op=True)
        assert work is not None
        yield
        with waiting_for_ranks():
            work.wait()
        flat /= self.mesh.num_replicas
        parts = flat.split([moment.numel() for moment in self._moments])
        for moment, part in zip(self._moments, parts, strict=True):
            moment.copy_(part.view_as(moment))

    def update(self, *, wants_norm: bool = False) -> tuple[torch.Tensor | None, Outcome]:
        """Apply the gradients and clear them; see `precision.apply_gradients`.

        A step that is skipped leaves no trace in BatchNorm's moments either.
        """
        norm, outcome = apply_gradients(
            self._optimizer,
            self._scaler,
            self._parameters,
            self._config.optim.clip_norm,
            self.mesh.same_replica,
            wants_norm=wants_norm,
        )
        self._optimizer.zero_grad(set_to_none=not self._adds_to_zeros)
        if outcome.skipped is not None:
            for buffer, before in zip(self._buffers, self._buffers_before, strict=True):
                buffer.copy_(torch.where(outcome.skipped, before, buffer))
                before.copy_(buffer)
        return norm, outcome

    def warm_up(self, inputs: torch.Tensor, keys: torch.Tensor, labels: torch.Tensor) -> None:
        """Run a step that leaves no trace.

        DDP orders its buckets anew after its first backward pass, and with them the additions in
        the reduction. Behind a warm-up a resumed run has the order of one that never stopped.
        """
        state = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.add_gradients(inputs, keys, labels, step_samples=len(inputs), is_last=True)
        self._optimizer.zero_grad(set_to_none=not self._adds_to_zeros)
        self.model.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """Both columns' weights and optimizer state, and the scaler: the same in any layout.

        The ranks of a replica call it together; what its first rank gets is whole.
        """
        return self._state(self.mesh.columns)

    def held_state(self) -> dict[str, Any]:
        """The same of the columns that this rank holds: no other rank takes part."""
        return self._state(BOTH)

    def _state(self, columns: Columns) -> dict[str, Any]:
        parts = self.model.state_dict()
        return {
            "model": {name: whole_of(name, part, columns) for name, part in parts.items()},
            "optimizer": optimizer_state(self.model, self._optimizer, columns),
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(
        self, state: dict[str, Any], *, with_optimizer: bool = True, with_scaler: bool = True
    ) -> None:
        """Go on from a `state_dict`; raises `ValueError` if it is another network's."""
        self._load(state, self.mesh.column, with_optimizer=with_optimizer, with_scaler=with_scaler)

    def load_held_state(self, state: dict[str, Any]) -> None:
        """Go on from the `held_state` of a rank that holds the same columns."""
        self._load(state, None)

    def _load(
        self,
        state: dict[str, Any],
        column: int | None,
        *,
        with_optimizer: bool = True,
        with_scaler: bool = True,
    ) -> None:
        load_weights(self.model, state["model"], column)
        for buffer, before in zip(self._buffers, self._buffers_before, strict=True):
            before.copy_(buffer)
        if with_optimizer:
            load_optimizer_state(self.model, self._optimizer, state["optimizer"], column)
        if with_scaler:
            self._scaler.load_state_dict(state["scaler"])

    @torch.no_grad()
    def is_finite(self) -> bool:
        """Whether every weight and moment is a number. Waits for the device."""
        values = (*self._parameters, *self._moments)
        return bool(torch.stack([value.isfinite().all() for value in values]).all())


@contextlib.contextmanager
def _noting_lost_ranks(lost_rank: threading.Event) -> Iterator[None]:
    try:
        yield
    except RuntimeError:
        lost_rank.set()
        raise


def _reduced(
    lost_rank: threading.Event, done: torch.futures.Future[list[torch.Tensor]]
) -> torch.Tensor:
    with _noting_lost_ranks(lost_rank):
        return done.value()[0]
