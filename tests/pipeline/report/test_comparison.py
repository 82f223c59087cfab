"""Several runs compared: where their settings differ, and what came of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipeline.report.__main__ import main
from pipeline.report.comparison import differing_settings, read_compared, results
from pipeline.report.comparison_page import render_comparison
from pipeline.report.overlays import MAX_RUNS
from pipeline.run.directory import RunDirectory
from tests.pipeline.fake_run import write_run
from tests.pipeline.report.html_tree import Element, parse
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


def lines_of(chart: Element) -> dict[str, str]:
    """The dashes of each run's line in a chart, by its colour."""
    styles = [path.attributes.get("style", "") for path in chart.all("path")]
    found = {}
    for style in styles:
        if color := re.search(r"stroke: (var\(--run-\d\))", style):
            dashes = re.search(r"stroke-dasharray: ([\d., ]*)", style)
            found[color[1]] = dashes[1] if dashes else ""
    return found


def test_curves_are_overlaid_and_differ_without_their_colours(runs: list[RunDirectory]) -> None:
    page = parse(render_comparison(runs))
    assert page.one("h1").text == "2 runs compared"
    accuracy, loss, train_loss, speed = page.with_id("curves").all("figure", "chart")
    for figure, names in (
        (accuracy, ["run"]),
        (loss, ["run"]),
        *((f, ["run", "other"]) for f in (train_loss, speed)),
    ):
        lines = lines_of(figure.one("svg"))
        assert len(lines) == len({*lines.values()}) == len(names)
        label = figure.one("svg").attributes["aria-label"]
        assert label.startswith(f"{figure.one('h3').text} over epochs. At the end: run ")
        assert ("other" in label) == ("other" in names)
    keys = page.with_id("headline").one("ol", "runs").all("li")
    assert [key.text for key in keys] == ["run", "other"]
    assert [key.one("line").attributes["stroke-dasharray"] for key in keys] == ["", "6 2"]


def test_the_tables_of_the_page_are_those_of_the_comparison(runs: list[RunDirectory]) -> None:
    page, (found, _) = parse(render_comparison(runs)), read_compared(runs)
    tables = page.all("table", "compared")
    for table, expected in zip(tables, (results(found), differing_settings(found)), strict=True):
        shown = {
            row.one("th").text: [c.text for c in row.all("td")]
            for row in table.one("tbody").all("tr")
        }
        assert shown == expected


def test_hostile_names_are_text(runs: list[RunDirectory]) -> None:
    name = 'a"><script>alert(1)<'
    hostile = RunDirectory(runs[1].path.rename(runs[1].path.with_name(name)))
    page = parse(render_comparison([runs[0], hostile]))
    assert page.all("script") == []
    assert page.one("title").text.startswith(f"run, {name}")
    assert name in page.with_id("curves").all("svg")[2].attributes["aria-label"]


def test_without_events_the_page_says_so(runs: list[RunDirectory], tmp_path: Path) -> None:
    runs[1].events.unlink()
    runs[1].path.rename(tmp_path / "new")
    page = parse(render_comparison([RunDirectory(tmp_path / "new")] * 2))
    assert "No log interval and no evaluation" in page.with_id("curves").text
    assert [note.text for note in page.all("p", "note")][1:] == ["Nowhere."] * 2


def test_command_writes_the_comparison_beside_the_first_run(
    runs: list[RunDirectory], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(run.path) for run in runs]
    assert main([*paths, str(tmp_path / "none")]) == 0
    page = tmp_path / "comparison.html"
    assert capsys.readouterr().out == f"{page}\n"
    assert f"Left out of this page: {tmp_path / 'none'} is not a run directory" in page.read_text()
    assert main([paths[0]] * (MAX_RUNS + 1)) == 1
    assert "error: 9 runs for one page; expected at most 8: leave some" in capsys.readouterr().err
    assert main(["", ""]) == 1
    assert "the path is empty" in capsys.readouterr().err
