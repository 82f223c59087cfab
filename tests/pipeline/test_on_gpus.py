"""All that is to hold on a GPU, where one is. A dry run of `benchmarks.gpu` has it on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.pipeline.gpu_checks import checks

ROOT = Path(__file__).resolve().parents[2]

CHECKS = checks(torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", CHECKS)
def test_it_holds_on_a_gpu(name: str) -> None:
    CHECKS[name]()


def test_no_other_test_is_marked_gpu() -> None:
    """The benchmark runs the checks, and without pytest: it would leave other tests out."""
    mark = "@pytest.mark." + "gpu"
    marked = {source for source in (ROOT / "tests").rglob("*.py") if mark in source.read_text()}
    assert marked == {Path(__file__)}
