"""The Triton kernels on CPU tensors, by Triton's interpreter, against float64.

Run as a program with TRITON_INTERPRET=1: the variable has to be set before triton is imported.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from pipeline.model import response_norm_cuda
from pipeline.model.response_norm import FusedNorm, NormConstants, Relu, normalize_and_pool_plain

ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-11}
"""The interpreter rounds to bfloat16 towards 0."""

CODE, WIDE = NormConstants(), NormConstants(size=9, alpha=1e-3, k=1.0)

CASES: list[tuple[tuple[int, ...], int, NormConstants, Relu]] = [
    ((1, 96, 5, 37), 2, CODE, "after"),  # more pooled pixels in a row than one program takes
    ((1, 10, 17, 6), 1, CODE, "before"),  # more pooled rows, and a last column in no window
    ((2, 256, 5, 5), 2, CODE, "before"),
    ((1, 272, 6, 5), 1, WIDE, "after"),  # more channels than one program takes
    ((1, 3, 3, 3), 3, WIDE, "before"),
]


def main() -> None:
    _teach_bfloat16_products()
    for shape, num_columns, norm, relu in CASES:
        for dtype, rounding in ROUNDING.items():
            x = (100 * torch.randn(shape)).to(dtype).to(memory_format=torch.channels_last)
            _check(x, norm, num_columns, relu, rounding)
    _check_nan()


def _check(
    x: torch.Tensor, norm: NormConstants, num_columns: int, relu: Relu, rounding: float
) -> None:
    fused = FusedNorm(norm.size, norm.alpha, norm.k, num_columns, relu == "before")
    pooled, places = response_norm_cuda.forward(x, fused)
    exact = x.double().requires_grad_()
    expected = normalize_and_pool_plain(exact, norm, num_columns, relu)
    torch.testing.assert_close(pooled.double(), expected, rtol=rounding, atol=1e-6)
    gradient = torch.randn_like(pooled)
    found = response_norm_cuda.backward(gradient, x, places, fused)
    (exact_gradient,) = torch.autograd.grad(expected, exact, gradient.double())
    torch.testing.assert_close(found.double(), exact_gradient, rtol=rounding, atol=2e-5)


def _check_nan() -> None:
    """It takes its column of its pixel with it, and nothing else."""
    x = torch.ones(1, 20, 5, 5).to(memory_format=torch.channels_last)
    x[0, 12, 0, 0] = torch.nan
    pooled, _ = response_norm_cuda.forward(x, FusedNorm(5, 2e-5, 2.0, 2, False))
    expected = torch.zeros(1, 20, 2, 2, dtype=torch.bool)
    expected[0, 10:, 0, 0] = True
    assert torch.equal(pooled.isnan(), expected)


def _teach_bfloat16_products() -> None:
    """The interpreter holds bfloat16 as its bits, and multiplies those: give it the numbers."""
    product = interpreter.InterpreterBuilder.create_dot

    def create_dot(builder: Any, left: Any, right: Any, *others: Any) -> Any:
        return product(builder, _in_float32(left), _in_float32(right), *others)

    interpreter.InterpreterBuilder.create_dot = create_dot


def _in_float32(handle: Any) -> Any:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    numbers = (handle.data.astype(np.uint32) << 16).view(np.float32)
    return interpreter.TensorHandle(numbers, tl.float32)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
