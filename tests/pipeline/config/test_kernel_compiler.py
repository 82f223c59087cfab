"""Whether kernels can be compiled, on machines that lack one thing or another."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from collections.abc import Collection
from pathlib import Path

import pytest

from pipeline.config import kernel_compiler

pytest.importorskip("triton")

fault = kernel_compiler.compiler_fault.__wrapped__


@pytest.fixture
def headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`Python.h` of a machine that has gcc, and whose environment names nothing."""
    has_programs(monkeypatch, "gcc")
    for name in ("CC", "CPATH", "C_INCLUDE_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(tmp_path))
    file = tmp_path / "Python.h"
    file.touch()
    return file


def has_programs(monkeypatch: pytest.MonkeyPatch, *programs: str) -> None:
    found: Collection[str] = programs
    monkeypatch.setattr(shutil, "which", lambda name: name if name in found else None)


def test_triton_a_compiler_and_headers_suffice(
    headers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert headers.exists()
    assert fault() is None
    has_programs(monkeypatch, "clang")
    assert fault() is None
    has_programs(monkeypatch, "cc-of-ours")
    monkeypatch.setenv("CC", "cc-of-ours")
    assert fault() is None


def test_a_machine_without_triton_is_told(headers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert headers.exists()
    assert fault() == "Triton is not installed (pip install triton)"


@pytest.mark.usefixtures("headers")
def test_a_machine_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    has_programs(monkeypatch)
    assert "finds no gcc and no clang (install gcc, or set CC)" in str(fault())


@pytest.mark.usefixtures("headers")
@pytest.mark.parametrize("named", ["", "icc", "ccache gcc"])
def test_triton_calls_what_cc_names_and_nothing_else(
    named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", named)
    assert f"CC is {named!r}, no program" in str(fault())


@pytest.mark.parametrize("variable", ["CPATH", "C_INCLUDE_PATH"])
def test_headers_are_looked_for_where_compilers_do(
    variable: str, headers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = headers.parent / "other"
    other.mkdir()
    headers.rename(other / headers.name)
    assert f"there is no {headers} (install python3-dev" in str(fault())
    monkeypatch.setenv(variable, f"/nowhere:{other}")
    assert fault() is None


def test_what_is_there_now_is_found_once() -> None:
    assert kernel_compiler.compiler_fault() == fault()
