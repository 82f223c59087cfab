"""The Triton kernels: interpreted on the CPU, compiled for an H100, and on a GPU where one is."""

from __future__ import annotations

import pytest
import torch

from pipeline.model.response_norm import Norm, normalize_and_pool, normalize_and_pool_plain
from tests.pipeline.kernels import compile_for_h100, needs_gpu, run_interpreted

triton = pytest.importorskip("triton")

ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
TRITON_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@pytest.mark.slow
def test_interpreted_they_do_what_the_definition_says() -> None:
    run_interpreted("tests.pipeline.model.interpreted_kernels")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_they_compile_for_an_h100(dtype: torch.dtype) -> None:
    """The interpreter takes much that the compiler does not."""
    from pipeline.model import response_norm_cuda

    numbers = f"*{TRITON_NAMES[dtype]}"
    types = {"x": numbers, "places": "*u8", "alpha": "fp32", "k": "fp32"}
    x = torch.empty(1, 96, 55, 55, dtype=dtype)
    tile = response_norm_cuda._tile(x, Norm(2, True, 2e-5), reach=2)
    assert tile.block == 64
    forward = compile_for_h100(
        response_norm_cuda._forward_kernel,
        types | {"pooled": numbers},
        {"tile": tile},
    )
    backward = compile_for_h100(
        response_norm_cuda._backward_kernel,
        types | {"gradient": numbers, "found": numbers},
        {"tile": tile},
    )
    assert forward.asm["cubin"]
    assert backward.asm["cubin"]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("relu_first", [True, False])
@pytest.mark.parametrize(
    ("channels", "num_columns", "size"), [(96, 2, 55), (256, 2, 27), (256, 1, 13), (5, 1, 7)]
)
def test_on_a_gpu_they_do_what_the_definition_says(
    dtype: torch.dtype, relu_first: bool, channels: int, num_columns: int, size: int
) -> None:
    x = 30 * torch.randn(4, channels, size, size, device="cuda")
    x = x.to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    exact = x.detach().double().requires_grad_()
    norm = Norm(num_columns, relu_first, 2e-5)
    pooled = normalize_and_pool(x, norm)
    expected = normalize_and_pool_plain(exact, norm)
    torch.testing.assert_close(pooled.double(), expected, rtol=ROUNDING[dtype], atol=1e-5)

    gradient = torch.randn_like(pooled)
    (found,) = torch.autograd.grad(pooled, x, gradient)
    (exact_gradient,) = torch.autograd.grad(expected, exact, gradient.double())
    is_off = (found.double() - exact_gradient).abs() > 2e-5 + ROUNDING[dtype] * exact_gradient.abs()
    # Where two elements of a window are equal but for rounding, the gradient may go to either.
    assert is_off.double().mean() < 1e-4


@pytest.mark.gpu
@needs_gpu
def test_a_cuda_graph_can_hold_them() -> None:
    x = torch.randn(4, 96, 55, 55, device="cuda", dtype=torch.bfloat16)
    x = x.to(memory_format=torch.channels_last).requires_grad_()

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        pooled = normalize_and_pool(x, Norm(2, False, 2e-5))
        (gradient,) = torch.autograd.grad(pooled, x, torch.ones_like(pooled))
        return pooled, gradient

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        expected = step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
