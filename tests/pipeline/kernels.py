"""How Triton's kernels are tested without a GPU: by its interpreter, and by its compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

CAPABILITIES = {"A100": 80, "H100": 90, "B200": 100}
"""Compute capability, without its point, of the GPUs that the kernels are compiled for."""

for_each_gpu = pytest.mark.parametrize("capability", CAPABILITIES.values(), ids=CAPABILITIES)


def run_interpreted(module: str) -> None:
    """Run a program of checks with Triton's interpreter."""
    done = subprocess.run(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def compile_for(capability: int, kernel: Any, types: dict[str, str], constants: Any) -> Any:
    """As a launch does, for arguments of these types; those that are not named are int32.

    `capability` is that of a GPU, from `CAPABILITIES`.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = dict.fromkeys(kernel.arg_names, "i32") | types
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature=signature, constexprs=constants)
    # Said, as the default is to change; no kernel here depends on it.
    options = {"enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
