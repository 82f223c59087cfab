"""Every benchmark says on what it was measured, and computes as `auto` does there."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measurement import report
from benchmarks.step import our_config
from tests.pipeline.monitoring import REPOSITORY
from tests.pipeline.rank_jobs import call_in_processes

RESULTS = sorted((REPOSITORY / "benchmarks" / "results").glob("*.json"))


def reported(path: Path) -> dict[str, Any]:
    report({"precision": our_config("code").resolved_precision}, path)
    document: dict[str, Any] = json.loads(path.read_text())
    return document


@pytest.mark.skipif(platform.machine() != "x86_64", reason="limits are those of x86")
def test_without_bf16_a_benchmark_takes_fp32_and_says_so(tmp_path: Path) -> None:
    """In bf16, emulated, `benchmarks.step` took more than ten minutes."""
    avx2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    (found,) = call_in_processes(1, reported, tmp_path / "result.json", environments=[avx2])
    assert found["precision"] == "fp32"
    assert found["instruction_sets"].startswith("avx2 (limited by ATEN_CPU_CAPABILITY=avx2, ")
    assert " cores of " in found["hardware"]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_published_result_names_processor_and_instruction_sets(path: Path) -> None:
    found = json.loads(path.read_text())
    assert found["hardware"]
    assert found["instruction_sets"].startswith(("avx", "sve"))
    assert found["versions"]["torch"]


def test_results_are_published() -> None:
    assert RESULTS
