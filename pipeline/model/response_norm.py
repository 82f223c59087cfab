"""Response norm between neighbouring channels (2012, section 3.3), with its ReLU and its max-pool.

As torch's own operations these three read and write the first two layers' maps, the largest of the
network, about thirty times. Here they are one kernel forward and one backward, on CPUs by numba
(the extra `kernels`) and on GPUs by Triton. Both compute in float32 from any float type. Where they
are missing `normalize_and_pool_plain` is what is computed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, assert_never

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.config.kernel_compiler import compiler_fault
from pipeline.config.schema import Compilation

if TYPE_CHECKING:
    from torch._library.custom_ops import CustomOpDef


class Norm(NamedTuple):
    """x / (k + alpha · Σ x²)^0.75, the sum over the `size` channels around x's own.

    Channels are `num_columns` equal parts, and no window has channels of two.
    """

    num_columns: int
    relu_first: bool
    """pool(norm(relu(x))), the paper's order; else relu(pool(norm(x))), that of the 2012 code in
    the first layer."""
    alpha: float
    """On each square: the 2012 code and torch divide theirs by `size` first."""
    size: int = 5
    """Odd."""
    k: float = 2.0


_NORM = "int num_columns, bool relu_first, float alpha, int size, float k"


class NormalizeAndPool(nn.Module):
    """`normalize_and_pool` as a layer."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps N×C×H×W to N×C×H'×W', with H' = (H - 3) // 2 + 1."""
        return normalize_and_pool(x, self.norm)

    def extra_repr(self) -> str:
        return f"{self.norm}"


def normalize_and_pool(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    """Norm, ReLU and max-pool over 3×3 with stride 2 of N×C×H×W; channels-last. NaN stays NaN."""
    if not _is_fused(x):
        return normalize_and_pool_plain(x, norm)
    pooled: torch.Tensor
    pooled, _ = _fused(x.contiguous(memory_format=torch.channels_last), *norm)
    return pooled


def normalize_and_pool_plain(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    """The same of torch's own operations, for every device and dtype: the definition."""
    wide = x if x.dtype == torch.float64 else x.float()
    if norm.relu_first:
        pooled = F.max_pool2d(_normalize(F.relu(wide), norm), 3, 2)
    else:
        pooled = F.relu(F.max_pool2d(_normalize(wide, norm), 3, 2))
    return pooled.to(x.dtype).contiguous(memory_format=torch.channels_last)


def _normalize(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    per_column, half = x.shape[1] // norm.num_columns, norm.size // 2
    rows = x.movedim(1, -1)
    squares = F.pad(rows.square().unflatten(-1, (norm.num_columns, per_column)), (half, half))
    neighbours = (squares.narrow(-1, first, per_column) for first in range(norm.size))
    sums = functools.reduce(torch.add, neighbours).flatten(-2)
    # s^-0.75 = s^-0.5 · √(s^-0.5), several times as fast as a power, and nothing overflows.
    roots = (norm.k + norm.alpha * sums).rsqrt()
    return (rows * (roots * roots.sqrt())).movedim(-1, 1)


_KERNELS_FOR = {
    "cpu": importlib.util.find_spec("numba") is not None,
    "cuda": compiler_fault() is None,
}
"""Whether what compiles a device's kernels is there."""


def missing_kernels(device: torch.device) -> str | None:
    """A sentence about a GPU whose kernels cannot be compiled; None: they can, or it is none."""
    fault = compiler_fault()
    if device.type != "cuda" or fault is None:
        return None
    return (
        f"{fault}: crops, augmentation and response norm are torch's own operations on this GPU, "
        "and nothing is compiled; results are the same, but take longer"
    )


def check_compiler(choice: Compilation, device: torch.device) -> None:
    """Raise `ValueError` if all of the network is to be compiled for a GPU, and cannot be."""
    match choice:
        case "on":
            if missing_kernels(device) is not None:
                raise ValueError(
                    "compile is on, and nothing can be compiled for a GPU here: "
                    f"{compiler_fault()}; or take --compile auto, which then compiles nothing"
                )
        case "auto" | "off":
            pass
        case unknown:
            assert_never(unknown)


_BFLOAT16_TENSOR_CORES = (8, 0)
"""The compute capability that has them; the CUDA kernels are built on them."""


def _is_fused(x: torch.Tensor) -> bool:
    types = (torch.float32, torch.bfloat16, torch.float16)
    if x.dtype not in types or not _KERNELS_FOR.get(x.device.type, False):
        return False
    if x.device.type == "cuda":
        return torch.cuda.get_device_capability(x.device) >= _BFLOAT16_TENSOR_CORES
    return True


def _kernels(x: torch.Tensor) -> ModuleType:
    return importlib.import_module(f"pipeline.model.response_norm_{x.device.type}")


@torch.library.custom_op(
    "alexnet_2012::normalize_and_pool_backward",
    mutates_args=(),
    schema=f"(Tensor gradient, Tensor x, Tensor places, {_NORM}) -> Tensor",
)
def _backward(
    gradient: torch.Tensor, x: torch.Tensor, places: torch.Tensor, *norm: Any
) -> torch.Tensor:
    """The gradient of `_fused`'s pooled elements to that of its x; all channels-last."""
    found: torch.Tensor = empty_gradient(gradient, x)
    _kernels(x).backward(gradient, x, places, found, Norm(*norm))
    return found


@_backward.register_fake
def empty_gradient(_gradient: torch.Tensor, x: torch.Tensor, *_: Any) -> torch.Tensor:
    """What `backward` of the kernels fills."""
    return torch.empty_like(x, memory_format=torch.channels_last)


def _differentiable(operation: CustomOpDef) -> CustomOpDef:
    """Backward needs x and the places; the denominators it computes again."""

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        x, *ctx.norm = inputs
        ctx.save_for_backward(x, output[1])

    def backward(ctx: Any, gradient: torch.Tensor, _: None) -> tuple[torch.Tensor | None, ...]:
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        return _backward(gradient, *ctx.saved_tensors, *ctx.norm), *[None] * len(ctx.norm)

    operation.register_autograd(backward, setup_context=save)
    return operation


@_differentiable
@torch.library.custom_op(
    "alexnet_2012::normalize_and_pool",
    mutates_args=(),
    schema=f"(Tensor x, {_NORM}) -> (Tensor, Tensor)",
)
def _fused(x: torch.Tensor, *norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Of channels-last x what is pooled and, uint8, the place of each in its window, 9 where ReLU
    has cut it off; both channels-last."""
    pooled, places = empty_pool(x)
    _kernels(x).forward(x, pooled, places, Norm(*norm))
    return pooled, places


@_fused.register_fake
def empty_pool(x: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What `forward` of the kernels fills."""
    count, channels, height, width = x.shape
    rows = x.new_empty((count, (height - 1) // 2, (width - 1) // 2, channels))
    pooled = rows.permute(0, 3, 1, 2)
    return pooled, torch.empty_like(pooled, dtype=torch.uint8)
