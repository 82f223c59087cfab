"""Several runs compared: where their settings differ, and what came of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.report.comparison import differing_settings, read_compared, results
from pipeline.run.directory import RunDirectory
from tests.pipeline.fake_run import write_run
from tests.pipeline.report.report_page import NAMES


@pytest.fixture
def runs(tmp_path: Path) -> list[RunDirectory]:
    """Two, of which the second has another seed, another dropout and no evaluation."""
    first = write_run(tmp_path, NAMES)
    second = RunDirectory(tmp_path / "other")
    second.path.mkdir()
    settings = json.loads(first.config.read_text())
    settings["config"]["seed"] = 8
    settings["config"]["model"]["dropout"] = None
    settings["config"]["late"] = True
    second.config.write_text(json.dumps(settings))
    lines = first.events.read_text().splitlines(keepends=True)
    second.events.write_text("".join(line for line in lines if '"eval"' not in line))
    return [first, second]


def test_only_settings_that_differ_are_named(runs: list[RunDirectory]) -> None:
    """A field that the version of one run did not have is one."""
    found, faults = read_compared(runs)
    assert faults == []
    assert [run.name for run in found] == ["run", "other"]
    assert differing_settings(found) == {
        "seed": ["7", "8"],
        "model.dropout": ["0.5", "–"],
        "late": ["–", "True"],
    }
    assert differing_settings(found[:1]) == {}


def test_results_are_side_by_side(runs: list[RunDirectory]) -> None:
    found, _ = read_compared(runs)
    table = results(found)
    assert table["ended"] == ["completed", "completed"]
    assert table["top-1"] == ["64.29 %", "–"]
    assert table["best top-1"] == ["71.43 % at epoch 9", "–"]
    assert table["steps"] == ["100 of 100"] * 2
    assert table["images/s, median"] == ["930"] * 2
    assert table["attempts"] == ["2"] * 2
    assert table["preemptions"] == ["1"] * 2
    assert "GPU-hours" not in table


def test_runs_of_one_name_have_their_paths(runs: list[RunDirectory], tmp_path: Path) -> None:
    twin = tmp_path / "more" / "run"
    twin.mkdir(parents=True)
    (twin / "config.json").write_bytes(runs[0].config.read_bytes())
    found, _ = read_compared([*runs, RunDirectory(twin)])
    assert [run.name for run in found] == [str(runs[0].path), "other", str(twin)]
    assert results(found)["top-1"] == ["64.29 %", "–", "–"]


def test_a_broken_run_costs_itself_alone(runs: list[RunDirectory], tmp_path: Path) -> None:
    runs[1].config.write_text("{")
    found, (broken, absent) = read_compared([*runs, RunDirectory(tmp_path / "none")])
    assert [run.name for run in found] == ["run"]
    assert "config.json is damaged" in broken
    assert f"{tmp_path / 'none'} is not a run directory" in absent
    with pytest.raises(ValueError, match="is damaged"):
        read_compared(runs[1:])
