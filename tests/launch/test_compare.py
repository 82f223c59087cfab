"""Runs side by side on a terminal: also unfinished, damaged and foreign ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from launch import compare
from launch.__main__ import main
from pipeline.run.directory import RunDirectory
from tests.pipeline.fake_run import RunHistory, start_fields, train_fields, write_run


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """One that is whole, one of another network that is not finished, one that has not begun."""
    first = write_run(tmp_path / "one", ("cat", "dog"))
    second = RunDirectory(tmp_path / "other")
    second.path.mkdir()
    settings = json.loads(first.config.read_text())
    settings["config"]["model"]["name"] = "alexnet_2012"
    second.config.write_text(json.dumps(settings))
    history = RunHistory(second)
    history.write("run", 0, **start_fields())
    history.write("train", 5, **train_fields(5, speed=1234))
    history.close()
    third = RunDirectory(tmp_path / "third")
    third.path.mkdir()
    third.config.write_text(json.dumps(settings | {"recipe": "alexnet_fast"}))
    return [str(run.path) for run in (first, second, third)]


def cells(text: str, name: str) -> list[str]:
    """Those of the row of that name."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"{name}  "))
    return re.split(" {2,}", line.removeprefix(name).strip())


def test_results_and_differing_settings_are_columns(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text("{")
    assert main(["compare", *runs, str(damaged), str(tmp_path / "nowhere")]) == 0
    text, errors = capsys.readouterr()
    assert text.split("\n")[0].split() == ["run", "other", "third"]
    assert cells(text, "model.name") == ["alexnet_cifar", "alexnet_2012", "alexnet_2012"]
    assert cells(text, "recipe") == ["cifar10", "cifar10", "alexnet_fast"]
    assert cells(text, "steps") == ["100 of 100", "5 of 100", "–"]
    assert cells(text, "images/s, median")[1:] == ["1,234", "–"]
    assert cells(text, "of which steps")[2] == "–"
    assert "seed" not in text, "that is the same in all"
    assert errors.count("warning: left out: ") == 2
    assert "damaged/config.json is damaged" in errors
    assert "nowhere is not a run directory" in errors


def test_what_cannot_be_compared_is_refused(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", runs[0]]) == 1
    assert "give two or more" in capsys.readouterr().err
    (tmp_path / "itself").symlink_to("itself")
    for name in ("b", "itself"):
        assert main(["compare", str(tmp_path / "a"), str(tmp_path / name)]) == 1
        assert "is not a run directory" in capsys.readouterr().err


@pytest.mark.parametrize("width", [30, 60, 200])
def test_a_table_is_no_wider_than_the_terminal(width: int) -> None:
    tables = {"": {"": ["one", "x" * 90]}, "results": {"name": ["a" * 50, "b"]}}
    lines = compare.lines_of(tables, width)
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("  ")
    assert ("…" in lines[0]) == (width < 150)
    assert lines[1:3] == ["", "results"]
