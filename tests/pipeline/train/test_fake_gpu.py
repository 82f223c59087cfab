"""The step of a GPU, gone through without one: which devices, which dtypes, and who waits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch

from pipeline.config.recipes import RECIPES
from pipeline.config.schema import Precision
from tests.machine import skip

SOURCE = Path(__file__).with_name("fake_gpu.cpp")
FOUND_BY = {
    "keys on the CPU": "FakeTensorDeviceMismatchError",
    "labels on the CPU": "FakeTensorDeviceMismatchError",
    "bytes as inputs": "RuntimeError",
    "short labels": "RuntimeError",
    "item": "DataDependentOutputException",
    "cpu": "AssertionError",
    "bool": "DataDependentOutputException",
    "nonzero": "DynamicOutputShapeException",
}
NUM_STEPS = len(RECIPES) * len(get_args(Precision)) * 2
"""Of pixels and of planes."""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    if torch.version.cuda is not None:
        pytest.skip("this torch has a CUDA device of its own")
    if shutil.which("g++") is None:
        skip("g++ is not installed")
    path, torch_path = tmp_path / "fake_gpu.so", Path(torch.__file__).parent
    words = ["-std=c++20", "-shared", "-fPIC", f"-I{torch_path}/include", str(SOURCE)]
    words += [f"-L{torch_path}/lib", f"-Wl,-rpath,{torch_path}/lib", "-lc10", "-ltorch_cpu"]
    subprocess.run(["g++", *words, "-o", str(path)], check=True)
    return path


@pytest.mark.slow
def test_steps_and_evaluations_are_right_and_mistakes_are_found(library: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.train.fake_step"],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[: len(FOUND_BY)] == [f"{what}: found by {how}" for what, how in FOUND_BY.items()]
    assert len(lines[len(FOUND_BY) :]) == NUM_STEPS
    assert all(line.endswith(": right") for line in lines[len(FOUND_BY) :])
