"""The Triton kernels: interpreted on the CPU, and compiled for GPUs; see `gpu_checks`, too."""

from __future__ import annotations

import pytest
import torch

from pipeline.model.response_norm import Norm
from tests.pipeline.kernels import compile_for, for_each_gpu, run_interpreted

triton = pytest.importorskip("triton")

TRITON_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@pytest.mark.slow
def test_interpreted_they_do_what_the_definition_says() -> None:
    run_interpreted("tests.pipeline.model.interpreted_kernels")


@pytest.mark.slow
@for_each_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_they_compile(capability: int, dtype: torch.dtype) -> None:
    """The interpreter takes much that the compiler does not."""
    from pipeline.model import response_norm_cuda

    numbers = f"*{TRITON_NAMES[dtype]}"
    types = {"x": numbers, "places": "*u8", "alpha": "fp32", "k": "fp32"}
    x = torch.empty(1, 96, 55, 55, dtype=dtype)
    tile = response_norm_cuda._tile(x, Norm(2, True, 2e-5), reach=2)
    assert tile.block == 64
    forward = compile_for(
        capability,
        response_norm_cuda._forward_kernel,
        types | {"pooled": numbers},
        {"tile": tile},
    )
    backward = compile_for(
        capability,
        response_norm_cuda._backward_kernel,
        types | {"gradient": numbers, "found": numbers},
        {"tile": tile},
    )
    assert forward.asm["cubin"]
    assert backward.asm["cubin"]
