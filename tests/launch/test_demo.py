"""What can go wrong with the demo; `make demo` itself is in tests/integration."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from launch.__main__ import main


def test_the_demo_asks_for_what_its_report_needs_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "matplotlib" else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    assert main(["demo", "--output", str(tmp_path / "demo")]) == 1
    said = "error: the report needs matplotlib: pip install 'alexnet-2012[report]'\n"
    assert capsys.readouterr() == ("", said)
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_the_demo_ends_with_the_first_command_that_fails(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    assert main(["demo", "--output", str(taken)]) == 1
    printed, said = capfd.readouterr()
    assert [line for line in printed.splitlines() if line] == [
        f"$ alexnet shard synthetic --output {taken}/demo-shards"
    ]
    assert str(taken) in said
    assert "Traceback" not in said
