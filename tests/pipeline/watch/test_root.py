"""A folder of runs, good and bad: each is what it is, none hides another, no link leads out."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from pipeline.run.directory import RunDirectory
from pipeline.run.lock import lock_run
from pipeline.watch.root import Root
from pipeline.watch.view import RunView
from tests.pipeline.fake_run import RunHistory, start_fields, train_fields, write_history
from tests.pipeline.monitoring import finish, rank_process, wait_for

SECRET = "what nobody may read"


@pytest.fixture
def root(tmp_path: Path) -> Root:
    folder = tmp_path / "root"
    folder.mkdir()
    return Root(folder)


def state(root: Root, key: str = "") -> dict[str, Any]:
    root.refresh()
    return json.loads(json.dumps(root.state(key, time.time())))  # type: ignore[no-any-return]


def states(root: Root) -> dict[str, str]:
    found = state(root)
    return {run["name"]: run.get("what") or run["state"] for run in found["runs"]} | {
        other["name"]: other["what"] for other in found["others"]
    }


def good_run(root: Root, name: str = "good") -> RunDirectory:
    run = RunDirectory(root.path / name)
    run.path.mkdir()
    write_history(run, [(epoch, 2 * epoch) for epoch in range(1, 11)], seen=100)
    return run


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A run beside the root."""
    run = RunDirectory(tmp_path / "outside")
    for folder in (run.logs, run.metrics):
        folder.mkdir(parents=True)
    write_history(run, [(1, 2)], seen=100)
    (run.logs / "a.log").write_text(SECRET)
    run.config.touch()
    (run.path / ".lock").touch()
    return run.path


def test_a_run_is_shown(root: Root) -> None:
    run = good_run(root)
    run.logs.mkdir()
    (run.logs / "a.log").write_text("step 1\nstep 2\n")
    found = state(root)
    (summary,) = found["runs"]
    assert summary.items() >= {"name": "good", "state": "completed", "step": 100}.items()
    assert summary.items() >= {"epoch": 10.0, "epochs": 10.0, "top1": 0.1, "top5": 0.2}.items()
    detail = found["run"]
    assert (found["key"], detail["name"]) == ("good", "good")
    assert [point[0] for point in detail["train"]] == [*range(5, 101, 5)]
    assert [point[3] for point in detail["val"]] == [epoch / 100 for epoch in range(1, 11)]
    assert detail["marks"] == {"resumed": [4.0], "stop requested": [4.0]}
    ledger = detail["ledger"]
    assert sum(ledger["seconds"].values()) == pytest.approx(ledger["end"] - ledger["begin"])
    assert (detail["log"], detail["lines"]) == ("good/logs/a.log", ["step 1", "step 2"])


def test_each_entry_is_what_it_is_and_none_hides_another(root: Root) -> None:
    good_run(root)
    bad = {
        "no-events": {"config.json": b"{"},
        "cut": {"events.jsonl": b'{"kind": "run", "st'},
        "garbage": {"events.jsonl": b'\xff\n[1]\n{"kind": "run"}\n' + b"[" * 100_000 + b"\n"},
        "newer": {"events.jsonl": b'{"kind": "run", "format_version": 99}\n'},
        "a\n<b>": {"config.json": b""},
        "photos": {"cat.jpg": b""},
        "cifar": {"_info.json": b"{}"},
        ".hidden": {"config.json": b""},
        os.fsdecode(b"\xff"): {"config.json": b""},
    }
    for name, files in bad.items():
        (root.path / name).mkdir()
        for file, content in files.items():
            (root.path / name / file).write_bytes(content)
    (root.path / "odd" / "events.jsonl").mkdir(parents=True)
    (root.path / "odd" / "config.json").touch()
    (root.path / "fifo" / "metrics").mkdir(parents=True)
    (root.path / "fifo" / "events.jsonl").touch()
    os.mkfifo(root.path / "fifo" / "metrics" / "rank-00000.prom")
    (root.path / "huge").mkdir()
    (root.path / "huge" / "events.jsonl").touch()
    os.truncate(root.path / "huge" / "events.jsonl", 1 << 40)
    (root.path / "notes.txt").touch()
    found = states(root)
    assert states(root) == found, "also when it is read again"
    assert found.pop("newer").startswith("cannot be read: ")
    assert found.pop("odd").endswith("odd/events.jsonl: Is a directory")
    assert found == {
        "good": "completed",
        "no-events": "has not started",
        "cut": "has not started",
        "garbage": "has not started",
        "a\\n<b>": "has not started",
        "\ufffd": "has not started",
        "photos": "a folder without a run",
        "cifar": "a shard set",
        "huge": "cannot be read: events.jsonl has more than 1 GiB, which no run has written",
        "fifo": "cannot be read: rank-00000.prom is neither a file nor a folder",
    }
    detail = state(root, "garbage")["run"]
    assert [fault.partition(":")[0] for fault in detail["faults"]] == ["a line is not an event"] * 2
    assert state(root, "%FF")["run"]["state"] == "has not started"
    assert state(root, "a%0A%3Cb%3E")["run"]["name"] == "a\\n<b>"
    assert state(root, "fifo")["run"].keys() == {"name", "state", "what"}
    assert state(root, "photos")["run"] is None


@pytest.mark.parametrize(
    "link", ["", "events.jsonl", "metrics", "logs", "logs/a.log", ".lock", "config.json"]
)
def test_nothing_is_read_through_a_link_out_of_the_root(
    root: Root, outside: Path, link: str
) -> None:
    good_run(root)
    path = root.path / "linked" / link
    path.parent.mkdir(parents=True, exist_ok=True)
    if link:
        (root.path / "linked" / "config.json").touch()
        path.unlink(missing_ok=True)
    path.symlink_to(outside / link)
    found = states(root)
    assert found["good"] == "completed"
    assert "not followed" in found["linked"]
    assert SECRET not in json.dumps(state(root, "linked"))


def test_a_run_without_metrics_is_followed_by_its_events(root: Root) -> None:
    run = RunDirectory(root.path / "quiet")
    run.path.mkdir()
    history, handle = RunHistory(run), lock_run(run, None, 0.0)
    history.write("run", 0, **start_fields())
    history.write("train", 7, **train_fields(7))
    found = state(root, "quiet")["run"]
    assert (found["state"], found["step"], found["ranks"]) == ("training", 7, [])
    history.write("train", 9, **train_fields(9))
    assert state(root, "quiet")["run"]["step"] == 9
    os.close(handle)
    assert state(root, "quiet")["run"]["state"] == "was killed"


def test_a_run_whose_details_fail_hides_nothing_else(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunView, "detail", mock.Mock(side_effect=ZeroDivisionError("by zero")))
    good_run(root)
    found = state(root, "good")
    assert found["run"]["what"] == "cannot be read: by zero"
    assert [each["state"] for each in found["runs"]] == ["completed"]


def test_a_log_that_the_lock_names_is_not_read_outside_of_the_root(
    root: Root, outside: Path
) -> None:
    run = good_run(root)
    run.logs.mkdir()
    (run.logs / "own.log").write_text("own")
    handle = lock_run(run, None, 0.0, str(outside / "logs" / "a.log"))
    assert state(root, "good")["run"]["lines"] is None
    os.close(handle)
    assert state(root, "good")["run"]["lines"] == ["own"]


def test_a_link_within_the_root_is_named(root: Root) -> None:
    good_run(root)
    (root.path / "latest").symlink_to("good")
    (root.path / "lost").symlink_to("nowhere")
    found = states(root)
    assert found["latest"] == "a link to good, which is not followed"
    assert found["lost"] == "a link to nowhere, which is not followed"


def test_what_is_deleted_is_gone_and_what_is_made_again_is_another(root: Root) -> None:
    run = good_run(root)
    assert state(root, "good")["run"]["step"] == 100
    shutil.rmtree(run.path)
    assert state(root, "good") | {"time": 0} == {
        **{"root": str(root.path), "fault": "", "time": 0, "runs": [], "others": []},
        **{"key": "good", "run": None},
    }
    run.path.mkdir()
    run.config.touch()
    found = state(root, "good")["run"]
    assert (found["state"], found["step"], found["train"]) == ("has not started", 0, [])


def test_a_root_that_is_gone_is_named_and_shown_again(root: Root) -> None:
    good_run(root)
    hidden = root.path.rename(root.path.with_name("hidden"))
    assert state(root)["fault"] == f"{root.path}: No such file or directory"
    hidden.rename(root.path)
    assert states(root) == {"good": "completed"}


def test_of_a_long_run_a_few_hundred_points_are_sent(root: Root) -> None:
    run = RunDirectory(root.path / "long")
    run.path.mkdir()
    history = RunHistory(run)
    history.write("run", 0, **start_fields())
    for step in range(3000):
        history.write("train", step, **train_fields(step))
    found = state(root, "long")
    assert 200 < len(found["run"]["train"]) <= 480
    assert len(found["runs"][0]["spark"]) <= 40
    assert len(json.dumps(found)) < 100_000


@pytest.fixture
def live(root: Root) -> Iterator[tuple[Root, Any]]:
    (root.path / "live").mkdir()
    with rank_process(root.path / "live", 0) as rank, rank_process(root.path / "live", 1):
        yield root, rank


@pytest.mark.slow
def test_ranks_that_train_finish_or_are_killed(live: tuple[Root, Any]) -> None:
    root, rank = live
    good_run(root)
    assert [run["name"] for run in state(root)["runs"]] == ["live", "good"], "at work: first"

    def shares() -> list[float]:
        ranks = state(root)["run"]["ranks"]
        assert [(each["rank"], each["state"]) for each in ranks] == [(0, "running"), (1, "running")]
        return [each["shares"]["data_wait"] for each in ranks]

    wait_for(lambda: shares() == [pytest.approx(0.25, abs=0.01)] * 2, "steps of both")
    finish(rank)
    found = state(root, "live")["run"]
    assert found["state"] == "completed"
    assert [each["state"] for each in found["ranks"]] == ["completed", "running"]
