"""The report of runs with missing or damaged parts, and its command with wrong arguments."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.report import inputs
from pipeline.report.__main__ import main
from pipeline.report.inputs import Missing, Predictions, read_predictions
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import read_events
from pipeline.run.lock import lock_run
from tests.pipeline.fake_run import RunHistory, eval_fields, start_fields, train_fields, write_run
from tests.pipeline.report.html_tree import Element
from tests.pipeline.report.report_page import NAMES, SECTIONS, bars_of, page_of, saved_predictions

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return write_run(tmp_path, NAMES)


def remove_events(run: RunDirectory) -> None:
    run.events.unlink()


def remove_predictions(run: RunDirectory) -> None:
    run.predictions("val").unlink()


def damage_predictions(run: RunDirectory) -> None:
    content = run.predictions("val").read_bytes()
    run.predictions("val").write_bytes(content[: len(content) // 2])


def swap_labels(run: RunDirectory) -> None:
    saved = saved_predictions(run)
    saved["labels"] = saved["labels"][::-1].copy()
    np.savez(run.predictions("val"), **saved)  # type: ignore[arg-type]


def move_shard_set(run: RunDirectory) -> None:
    (run.path.parent / "shards").rename(run.path.parent / "elsewhere")


def change_manifest(run: RunDirectory) -> None:
    path = run.path.parent / "shards" / "_info.json"
    path.write_text(path.read_text().replace('"synthetic"', '"other"'))


def remove_shards(run: RunDirectory) -> None:
    for path in (run.path.parent / "shards").glob("*.tar"):
        path.unlink()


def truncate_shards(run: RunDirectory) -> None:
    for path in (run.path.parent / "shards").glob("*.tar"):
        path.write_bytes(path.read_bytes()[:700])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "section", "sentence"),
    [
        (remove_events, "headline", "has not started yet"),
        (remove_events, "curves", "No log interval and no evaluation has been logged yet."),
        (remove_predictions, "confusion", "No evaluation has been saved yet."),
        (remove_predictions, "examples", "No evaluation has been saved yet."),
        (damage_predictions, "classes", "are damaged"),
        (swap_labels, "confusion", "their labels are not those of the shard set"),
        (move_shard_set, "classes", "is not a shard set"),
        (change_manifest, "examples", "has changed since this run"),
        (remove_shards, "examples", "Images are left out"),
        (truncate_shards, "classes", "is damaged at byte"),
    ],
)
def test_missing_part_is_said_in_place(
    run: RunDirectory, damage: Any, section: str, sentence: str
) -> None:
    damage(run)
    page = page_of(run)
    assert sentence in page.with_id(section).text
    for name in SECTIONS:
        page.with_id(name)


def test_bars_without_shard_set_have_class_numbers(run: RunDirectory) -> None:
    before = [bars_of(card) for card in page_of(run).with_id("classes").all("li", "taken")]
    move_shard_set(run)
    cards = page_of(run).with_id("classes").all("li", "taken")
    assert [[bar[1:] for bar in bars_of(card)] for card in cards] == [
        [bar[1:] for bar in bars] for bars in before
    ]
    assert bars_of(cards[0])[3][0] == "class 3"
    assert all(card.all("img") == [] for card in cards)


def test_run_without_evaluation(run: RunDirectory) -> None:
    remove_events(run)
    remove_predictions(run)
    history = RunHistory(run)
    history.write("run", 0, **start_fields())
    history.write("train", 5, **(train_fields(5) | {"loss": float("nan")}))
    history.close()
    page = page_of(run)
    assert legends(page) == ["training, top-1", "training", "learning rate, below", "all ranks"]
    assert "has not ended : it was killed, or its machine is gone" in page.with_id("headline").text
    assert "There is no evaluation yet" in page.with_id("headline").text
    assert len(page.with_id("time").all("svg")) == 2


def test_a_run_at_work_is_said_to_be(run: RunDirectory) -> None:
    remove_events(run)
    history = RunHistory(run)
    history.write("run", 0, **start_fields())
    history.close()
    lock = lock_run(run, None, wait_seconds=1)
    assert "has not ended : it is still going" in page_of(run).with_id("headline").text
    os.close(lock)


def legends(page: Element) -> list[str]:
    """What the keys of the curves and of the throughput say."""
    curves, time = (page.with_id(section).all("ul", "legend") for section in ("curves", "time"))
    return [key.text for legend in (*curves, time[0]) for key in legend.all("li")]


def test_keys_are_of_what_is_drawn(run: RunDirectory) -> None:
    marks = page_of(run).with_id("curves").all("ul", "marks")
    assert [key.text for key in marks[0].all("li")] == ["resumed", "stop requested"]
    remove_events(run)
    history = RunHistory(run)
    history.write("end", 0, outcome="failed", error="no room")  # an attempt, and no resume
    history.write("run", 0, **start_fields())
    history.write("train", 5, **train_fields(5))
    history.close()
    page = page_of(run)
    assert "in 2 attempts" in page.with_id("headline").text
    assert page.all("ul", "marks") == []
    assert legends(page)[-1] == "all ranks"


def test_failed_run_and_invalid_evaluation(run: RunDirectory) -> None:
    remove_events(run)
    history = RunHistory(run)
    history.write("run", 0, **start_fields())
    history.write("eval", 10, **eval_fields(5, 9, 99, 100))
    history.write("end", 10, outcome="failed", error="rank 1 <lost>")
    history.close()
    headline = page_of(run).with_id("headline").text
    assert "failed after" in headline
    assert "rank 1 <lost>" in headline
    assert "is invalid: it saw 99 images; expected 100." in headline


def test_a_run_whose_name_is_no_text_has_a_report(run: RunDirectory) -> None:
    odd = RunDirectory(run.path.rename(run.path.with_name(os.fsdecode(b"caf\xe9"))))
    assert main([str(odd.path)]) == 0
    assert "Training report · caf\ufffd" in odd.report.read_text()


def report(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.report", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_command_writes_the_page_and_says_where(run: RunDirectory, tmp_path: Path) -> None:
    done = report(run.path)
    assert (done.returncode, done.stdout) == (0, f"{run.report}\n")
    other = tmp_path / "other.html"
    assert report(run.path, "--output", other).stdout == f"{other}\n"
    assert other.read_bytes() == run.report.read_bytes()


@pytest.mark.parametrize("kind", ["missing", "empty", "file", "damaged", "list", "folder"])
def test_not_a_run_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    path = tmp_path / "run"
    if kind == "file":
        path.write_text("no run")
    elif kind != "missing":
        path.mkdir()
    if kind in ("damaged", "list"):
        (path / "config.json").write_text('{"recipe": ' if kind == "damaged" else "[]")
    if kind == "folder":
        (path / "config.json").mkdir()
    output = tmp_path / "report.html"
    assert main([str(path), "--output", str(output)]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]*\n", error)
    assert str(path) in error
    assert "Errno" not in error
    assert not output.exists()


def test_small_predictions_that_unpack_to_large_ones_are_left_out(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, events = run.predictions("val"), read_events(run.events)
    monkeypatch.setattr(inputs, "_MOST_BYTES", 1 << 20)
    assert isinstance(read_predictions(path, Missing("x"), events), Predictions)
    large = {**saved_predictions(run), "labels": np.zeros(1 << 20, np.int64)}
    np.savez_compressed(path, **large)  # type: ignore[arg-type]
    assert path.stat().st_size < 1 << 15
    found = read_predictions(path, Missing("x"), events)
    assert isinstance(found, Missing)
    assert "they unpack to more than 1,048,576 bytes" in found.reason


@pytest.mark.slow
def test_wrong_output_keeps_the_old_page(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run.path), "--output", str(run.path / "no" / "report.html")]) == 1
    assert "is not a directory: give another --output" in capsys.readouterr().err
    assert main([str(run.path), "--output", "/proc/report.html"]) == 1
    wanted = "error: /proc/report.html: No such file or directory; give --output FILE, where it can"
    assert capsys.readouterr().err.startswith(wanted)
    assert main([str(run.path), "--output", str(run.path)]) == 1
    assert "is not a regular file: give another --output" in capsys.readouterr().err
    pipe = run.path / "pipe"
    os.mkfifo(pipe)
    assert main([str(run.path), "--output", str(pipe)]) == 1
    assert "is not a regular file" in capsys.readouterr().err
    assert pipe.is_fifo()
    assert main([str(run.path)]) == 0
    page = run.report.read_bytes()
    run.config.write_text("{")
    assert main([str(run.path)]) == 1
    assert "config.json is damaged" in capsys.readouterr().err
    assert run.report.read_bytes() == page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"kind": "eval", "step": 1, "epoch": 1, "time": 1}', "a 'eval' row lacks correct1, "),
        (
            '{"kind": "alarm", "reason": "fire", "step": 1, "epoch": 1, "time": 1}',
            "the reason of an alarm is 'fire', expected not_learning, damaged_image",
        ),
        ("[1]", "it is [1], expected an object"),
        (
            '{"kind": "end", "step": null, "epoch": 1, "time": 1, "outcome": "failed"}',
            "step of a 'end' row is None, expected a number",
        ),
    ],
)
def test_an_odd_row_costs_itself_alone(run: RunDirectory, line: str, fault: str) -> None:
    """And not the report of all the others."""
    top1 = page_of(run).with_id("headline").all("div", "tile")[0].text
    num_lines = len(run.events.read_bytes().splitlines())
    with run.events.open("a") as file:
        file.write(line + "\n")
    headline = page_of(run).with_id("headline")
    (note,) = headline.all("p", "alarm")
    assert f"line {num_lines + 1} is not an event: {fault}" in note.text
    assert headline.all("div", "tile")[0].text == top1


@pytest.mark.slow
def test_torch_is_not_needed(run: RunDirectory) -> None:
    script = (
        "import sys; sys.modules['torch'] = None; from pipeline.report.__main__ import main; "
        f"sys.exit(main([{str(run.path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_without_the_extra(
    run: RunDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([str(run.path)]) == 1
    assert capsys.readouterr().err == (
        "error: the report needs matplotlib: pip install 'alexnet-2012[report]'\n"
    )
