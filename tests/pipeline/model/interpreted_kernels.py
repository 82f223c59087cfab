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
from pipeline.model.response_norm import Norm, empty_gradient, empty_pool, normalize_and_pool_plain

ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-11}
"""The interpreter rounds to bfloat16 towards 0."""

CODE, WIDE = Norm(2, True, alpha=2e-5), Norm(1, False, alpha=1e-3, size=9, k=1.0)

CASES: list[tuple[tuple[int, ...], Norm]] = [
    # More pooled pixels in a row than one program takes.
    ((1, 96, 5, 37), CODE._replace(relu_first=False)),
    # More pooled rows, and a last column in no window.
    ((1, 10, 17, 6), CODE._replace(num_columns=1)),
    ((2, 256, 5, 5), CODE),
    # More channels than one program takes.
    ((1, 272, 6, 5), WIDE),
    ((1, 3, 3, 3), WIDE._replace(num_columns=3, relu_first=True)),
]


def main() -> None:
    _teach_bfloat16_products()
    for shape, norm in CASES:
        for dtype, rounding in ROUNDING.items():
            x = (100 * torch.randn(shape)).to(dtype).to(memory_format=torch.channels_last)
            _check(x, norm, rounding)
    _check_nan()


def _check(x: torch.Tensor, norm: Norm, rounding: float) -> None:
    pooled, places = empty_pool(x)
    response_norm_cuda.forward(x, pooled, places, norm)
    exact = x.double().requires_grad_()
    expected = normalize_and_pool_plain(exact, norm)
    torch.testing.assert_close(pooled.double(), expected, rtol=rounding, atol=1e-6)
    gradient = torch.randn_like(pooled)
    found = empty_gradient(gradient, x)
    response_norm_cuda.backward(gradient, x, places, found, norm)
    (exact_gradient,) = torch.autograd.grad(expected, exact, gradient.double())
    torch.testing.assert_close(found.double(), exact_gradient, rtol=rounding, atol=2e-5)


def _check_nan() -> None:
    """It takes its column of its pixel with it, and nothing else."""
    x = torch.ones(1, 20, 5, 5).to(memory_format=torch.channels_last)
    x[0, 12, 0, 0] = torch.nan
    pooled, places = empty_pool(x)
    response_norm_cuda.forward(x, pooled, places, CODE._replace(relu_first=False))
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
