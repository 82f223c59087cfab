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
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, assert_never

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch._library.custom_ops import CustomOpDef

Relu = Literal["before", "after"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NormConstants:
    """x / (k + alpha · Σ x²)^0.75, the sum over the `size` channels around x's own."""

    size: int = 5
    alpha: float = 2e-5
    """On each square: the 2012 code and torch divide theirs by `size` first."""
    k: float = 2.0

    def __post_init__(self) -> None:
        if self.size < 1 or self.size % 2 == 0:
            raise ValueError(f"A norm's window is an odd number of channels, not {self.size}.")
        if self.k <= 0 or self.alpha < 0:
            raise ValueError(f"A norm needs k > 0 and alpha >= 0, not {self.k} and {self.alpha}.")


class NormalizeAndPool(nn.Module):
    """`normalize_and_pool` as a layer."""

    def __init__(self, constants: NormConstants | None, *, num_columns: int, relu: Relu) -> None:
        super().__init__()
        self.constants = constants
        self.num_columns = num_columns
        self.relu: Relu = relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps N×C×H×W to N×C×H'×W', with H' = (H - 3) // 2 + 1."""
        return normalize_and_pool(x, self.constants, self.num_columns, self.relu)

    def extra_repr(self) -> str:
        return f"{self.constants}, num_columns={self.num_columns}, relu={self.relu!r}"


def normalize_and_pool(
    x: torch.Tensor, constants: NormConstants | None, num_columns: int, relu: Relu
) -> torch.Tensor:
    """Norm, ReLU and max-pool over 3×3 with stride 2 of N×C×H×W; channels-last.

    before    pool(norm(relu(x))), the paper's order
    after     relu(pool(norm(x))), that of the 2012 code in the first layer

    Channels are `num_columns` equal parts, and no window has channels of two. Without constants
    there is no norm. NaN stays NaN.
    """
    _check(x, num_columns)
    if constants is None or not _is_fused(x):
        return normalize_and_pool_plain(x, constants, num_columns, relu)
    norm = FusedNorm(constants.size, constants.alpha, constants.k, num_columns, _is_first(relu))
    pooled: torch.Tensor
    pooled, _ = _fused(x.contiguous(memory_format=torch.channels_last), *norm)
    return pooled


def _is_first(relu: Relu) -> bool:
    match relu:
        case "before":
            return True
        case "after":
            return False
        case unknown:
            assert_never(unknown)


def normalize_and_pool_plain(
    x: torch.Tensor, constants: NormConstants | None, num_columns: int, relu: Relu
) -> torch.Tensor:
    """The same of torch's own operations, for every device and dtype: the definition."""
    _check(x, num_columns)
    if constants is None:
        # ReLU and max-pool commute, and behind the pool it has a quarter of the elements.
        pooled = F.relu(F.max_pool2d(x, 3, 2))
    else:
        wide = x if x.dtype == torch.float64 else x.float()
        if _is_first(relu):
            pooled = F.max_pool2d(_normalize(F.relu(wide), constants, num_columns), 3, 2)
        else:
            pooled = F.relu(F.max_pool2d(_normalize(wide, constants, num_columns), 3, 2))
    return pooled.to(x.dtype).contiguous(memory_format=torch.channels_last)


def _normalize(x: torch.Tensor, constants: NormConstants, num_columns: int) -> torch.Tensor:
    per_column, half = x.shape[1] // num_columns, constants.size // 2
    rows = x.movedim(1, -1)
    squares = F.pad(rows.square().unflatten(-1, (num_columns, per_column)), (half, half))
    neighbours = (squares.narrow(-1, first, per_column) for first in range(constants.size))
    sums = functools.reduce(torch.add, neighbours).flatten(-2)
    # s^-0.75 = s^-0.5 · √(s^-0.5), several times as fast as a power, and nothing overflows.
    roots = (constants.k + constants.alpha * sums).rsqrt()
    return (rows * (roots * roots.sqrt())).movedim(-1, 1)


def _check(x: torch.Tensor, num_columns: int) -> None:
    if x.shape[2] < 3 or x.shape[3] < 3:
        raise ValueError(f"A 3×3 pool needs maps of 3×3 at least, not {x.shape[2]}×{x.shape[3]}.")
    if x.shape[1] % num_columns:
        raise ValueError(f"{x.shape[1]} channels are not {num_columns} equal columns.")


_KERNELS_FOR = {
    device: importlib.util.find_spec(package) is not None
    for device, package in (("cpu", "numba"), ("cuda", "triton"))
}
"""Whether what compiles a device's kernels is installed."""


_FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_BFLOAT16_TENSOR_CORES = (8, 0)
"""The compute capability that has them; the CUDA kernels are built on them."""


def _is_fused(x: torch.Tensor) -> bool:
    if x.dtype not in _FUSED_DTYPES or not _KERNELS_FOR.get(x.device.type, False):
        return False
    if x.device.type == "cuda":
        return torch.cuda.get_device_capability(x.device) >= _BFLOAT16_TENSOR_CORES
    return True


class FusedNorm(NamedTuple):
    """The operations' arguments behind the tensors: numbers, which is what torch takes there."""

    size: int
    alpha: float
    k: float
    num_columns: int
    relu_first: bool


_ARGUMENTS = "int size, float alpha, float k, int num_columns, bool relu_first"


def _kernels(x: torch.Tensor) -> ModuleType:
    return importlib.import_module(f"pipeline.model.response_norm_{x.device.type}")


def _empty_rows(x: torch.Tensor, height: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """N×C×height×width, channels-last, of the N and C of x."""
    return x.new_empty((x.shape[0], height, width, x.shape[1]), dtype=dtype).permute(0, 3, 1, 2)


@torch.library.custom_op(
    "alexnet_2012::normalize_and_pool_backward",
    mutates_args=(),
    schema=f"(Tensor gradient, Tensor x, Tensor places, {_ARGUMENTS}) -> Tensor",
)
def _backward(
    gradient: torch.Tensor, x: torch.Tensor, places: torch.Tensor, *norm: Any
) -> torch.Tensor:
    """The gradient of `_fused`'s pooled elements to that of its x; all channels-last."""
    found: torch.Tensor = _kernels(x).backward(gradient, x, places, FusedNorm(*norm))
    return found


@_backward.register_fake
def _backward_fake(gradient: torch.Tensor, x: torch.Tensor, *_: Any) -> torch.Tensor:
    return _empty_rows(x, x.shape[2], x.shape[3], gradient.dtype)


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
    schema=f"(Tensor x, {_ARGUMENTS}) -> (Tensor, Tensor)",
)
def _fused(x: torch.Tensor, *norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Of channels-last x what is pooled and, uint8, the place of each in its window, 9 where ReLU
    has cut it off; both channels-last."""
    pooled, places = _kernels(x).forward(x, FusedNorm(*norm))
    return pooled, places


@_fused.register_fake
def _fused_fake(x: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    height, width = (x.shape[2] - 1) // 2, (x.shape[3] - 1) // 2
    return _empty_rows(x, height, width, x.dtype), _empty_rows(x, height, width, torch.uint8)
