"""The type of a network's arithmetic, and the loss scale that fp16 needs."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, assert_never

import torch
import torch.distributed as dist

from pipeline.config.schema import Config, Precision
from pipeline.optim.processor import has_bf16, instruction_sets
from pipeline.ranks.failure import waiting_for_ranks

MAX_SKIPPED_IN_A_ROW = 100
"""After this number of skipped steps in a row no loss scale helps."""


_SLOWDOWN: dict[Precision, str] = {
    "bf16": "a step takes 10 (cifar10) to 23 times (alexnet_fast) as long as in fp32 with AVX2, "
    "2.4 times with AVX-512",
    "fp16": "a step takes 13 to 15 times as long as in fp32 (cifar10)",
}
"""What emulation was measured to cost on processors: docs/benchmarks.md, "Processors"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arithmetic:
    """What the device of one rank computes in."""

    host: str
    device: str
    """The GPU's name, or the processor's instruction sets."""
    native: tuple[Precision, ...]
    """What it has instructions for, the fastest first."""
    emulated: tuple[Precision, ...]
    """What it computes too, slowly."""
    is_gpu: bool = False


def arithmetic_of(device: torch.device) -> Arithmetic:
    host, native, emulated = socket.gethostname(), list[Precision](), list[Precision]()
    is_gpu = device.type == "cuda"
    if is_gpu:
        name = torch.cuda.get_device_name(device)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            native.append("bf16")
        native += ["fp16", "fp32"]
    else:
        name = instruction_sets()
        (native if has_bf16() else emulated).append("bf16")
        native.append("fp32")
        emulated.append("fp16")
    able = {"native": tuple(native), "emulated": tuple(emulated)}
    return Arithmetic(host=host, device=name, is_gpu=is_gpu, **able)


def fastest(devices: Sequence[Arithmetic]) -> Precision:
    """The fastest precision that all of them have instructions for: what `auto` is on them."""
    first, *others = devices
    return next(one for one in first.native if all(one in other.native for other in others))


def resolve(config: Config, kept: Precision | None, devices: Sequence[Arithmetic]) -> Config:
    """The config with `auto` decided on for the `devices` of all ranks.

    A run that goes on keeps what it has, `kept`. Raises `ValueError` if a device cannot compute in
    the precision.
    """
    choice = config.precision
    precision = (kept or fastest(devices)) if choice == "auto" else choice
    for one in devices:
        if precision not in (*one.native, *one.emulated):
            hint = "" if kept is None else f" with another --run-dir: this run is in {kept}"
            raise ValueError(
                f"{one.device} cannot compute in {precision}: use --precision {one.native[0]}{hint}"
            )
    return dataclasses.replace(config, precision=precision)


def emulation(precision: Precision, devices: Sequence[Arithmetic]) -> str | None:
    """A sentence about the hosts that only emulate `precision`; None: there are none."""
    hosts = dict.fromkeys(one.host for one in devices if precision in one.emulated)
    if not hosts:
        return None
    return f"{precision} is emulated on {', '.join(hosts)}: {_SLOWDOWN[precision]}"


def mixture(devices: Sequence[Arithmetic]) -> str | None:
    """A sentence about GPUs of different kinds in one job; None: there are none."""
    hosts_of = _hosts_of([one for one in devices if one.is_gpu])
    if len(hosts_of) < 2:
        return None
    return (
        f"the GPUs are of different kinds ({_named(hosts_of)}), and each step takes as long as on "
        "the slowest: use hosts of one kind, or choose by CUDA_VISIBLE_DEVICES"
    )


def meaning(devices: Sequence[Arithmetic]) -> str:
    """What the devices of all ranks are, and what that makes of `auto`."""
    emulated = emulation("bf16", devices)
    text = f"{_named(_hosts_of(devices))}: --precision auto is {fastest(devices)}"
    return text if emulated is None else f"{text}; {emulated}"


def _hosts_of(devices: Sequence[Arithmetic]) -> dict[str, dict[str, None]]:
    """The hosts of each kind of device, in order."""
    found: dict[str, dict[str, None]] = {}
    for one in devices:
        found.setdefault(one.device, {})[one.host] = None
    return found


def _named(hosts_of: dict[str, dict[str, None]]) -> str:
    return "; ".join(f"{device} on {', '.join(hosts)}" for device, hosts in hosts_of.items())


def type_of(precision: Precision) -> torch.dtype:
    """What convolutions compute in, and cast their inputs to."""
    match precision:
        case "fp32":
            return torch.float32
        case "bf16":
            return torch.bfloat16
        case "fp16":
            return torch.float16
        case unknown:
            assert_never(unknown)


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Run a forward pass in `precision`; weights stay fp32."""
    dtype = type_of(precision)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def loss_scaler(
    precision: Precision, device: torch.device, same_replica: dist.ProcessGroup | None
) -> torch.amp.GradScaler:
    """Scales the loss in fp16 and does nothing otherwise (Micikevicius, arXiv 1710.03740)."""
    is_enabled = type_of(precision) == torch.float16
    if same_replica is None:
        return torch.amp.GradScaler(device.type, enabled=is_enabled)
    return _ReplicaScaler(device.type, is_enabled, same_replica)


class _ReplicaScaler(torch.amp.GradScaler):
    """For ranks that hold parts of one replica: if one part overflows, all skip the step.

    torch's ShardedGradScaler adds up where this takes the maximum, and the fused optimizers do not
    skip a step in which two have overflowed (seen in torch 2.13).
    """

    def __init__(self, device: str, is_enabled: bool, same_replica: dist.ProcessGroup) -> None:
        super().__init__(device, enabled=is_enabled)
        self._same_replica = same_replica

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> float | None:
        """Unscales first, whether that was called or not: only then is known what overflowed."""
        if self.is_enabled() and not self._found_inf_per_device(optimizer):
            self.unscale_(optimizer)
        return super().step(optimizer, *args, **kwargs)

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        super().unscale_(optimizer)
        if self.is_enabled():
            for found in self._found_inf_per_device(optimizer).values():
                with waiting_for_ranks():
                    dist.all_reduce(found, dist.ReduceOp.MAX, group=self._same_replica)


class Outcome:
    """Whether an update was skipped: on the device, and on the host once somebody asks."""

    def __init__(self, skipped: torch.Tensor | None) -> None:
        """`skipped` is a bool on the device; None: it was not."""
        self.skipped = skipped
        self._on_host = skipped
        self._copied: torch.cuda.Event | None = None
        if skipped is not None and skipped.is_cuda:
            self._on_host = skipped.to("cpu", non_blocking=True)
            self._copied = torch.cuda.Event(blocking=True)
            self._copied.record()

    def was_skipped(self) -> bool:
        """Waits for the device to have done this update, and for nothing that was asked later."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._on_host is not None and bool(self._on_host)


def apply_gradients(
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    parameters: list[torch.nn.Parameter],
    clip_norm: float | None,
    same_replica: dist.ProcessGroup | None,
    *,
    wants_norm: bool = False,
) -> tuple[torch.Tensor | None, Outcome]:
    """Update the weights; returns the gradients' norm and whether the step was skipped.

    The norm is over all ranks of the replica; None if it is not wanted and nothing is clipped by
    it. Gradients are unscaled before they are clipped. A step whose gradients are not finite is
    left out in fp16, and the scale falls.
    """
    norm = None
    if clip_norm is None and wants_norm:
        norm = _norm(parameters, same_replica) / _scale(scaler, parameters)
    elif clip_norm is not None:
        scaler.unscale_(optimizer)
        norm = _norm(parameters, same_replica)
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    if not scaler.is_enabled():
        optimizer.step()
        return norm, Outcome(None)
    scale = _scale(scaler, parameters)
    scaler.step(optimizer)
    scaler.update()
    return norm, Outcome(_scale(scaler, parameters) < scale)


def _scale(scaler: torch.amp.GradScaler, parameters: list[torch.nn.Parameter]) -> torch.Tensor:
    """On the device, where asking for it costs no wait; 1 if nothing is scaled."""
    scale: torch.Tensor = scaler.scale(torch.ones((), device=parameters[0].device))
    return scale


def _norm(
    parameters: list[torch.nn.Parameter], same_replica: dist.ProcessGroup | None
) -> torch.Tensor:
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if same_replica is None:
        return norm
    square = norm.square()
    with waiting_for_ranks():
        dist.all_reduce(square, group=same_replica)
    return square.sqrt()
