"""What `status` says of a run, from its files and from SLURM's own words."""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path

import pytest

from launch.__main__ import main
from pipeline.metrics.declared import HEARTBEAT
from pipeline.metrics.rank_file import Writer, render_rank_file
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import append
from pipeline.run.events import Event
from tests.pipeline.fake_run import (
    RunHistory,
    checkpoint_fields,
    event,
    start_fields,
    train_fields,
)
from tests.pipeline.monitoring import finish, rank_process, wait_for


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.logs.mkdir(parents=True)
    return run


@pytest.mark.slow
def test_the_step_is_that_of_now_before_a_log_interval_ends(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    def step() -> int:
        assert main(["status", str(run.path)]) == 0
        text = capsys.readouterr().out
        (found,) = re.findall(r"^step +(\d+) of 100 ", text, re.MULTILINE) or ["-1"]
        return int(found)

    with rank_process(run.path, 0) as rank:
        wait_for(lambda: step() > 3, "a step of which the events say nothing")
        finish(rank)
    assert step() == 100, "the last event's"


def test_status_is_of_this_copy_of_the_run_and_names_what_is_wrong(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    history = RunHistory(run)
    history.write("run", 0, **start_fields())
    history.write("train", 10, **train_fields(10))
    path = "/of/the/original/step-00000015"
    history.write("checkpoint", 15, **checkpoint_fields("best") | {"path": path})
    error = "rank 0 on vm: lost another rank: it was killed, hangs or its host is gone (Read error)"
    history.write("end", 15, outcome="failed", error=error, cause="lost_rank")
    history.close()
    with run.events.open("a") as file:
        file.write('{"kind": "train"}\n')

    def status() -> str:
        assert main(["status", str(run.path)]) == 0
        return capsys.readouterr().out

    text = status()
    assert f"checkpoint   {run.checkpoints}/step-00000015, " in text
    assert "waiting for data, at step 10\n" in text
    assert f"faults       {run.events}, line 5 is not an event: it has no epoch, " in text
    assert "state        failed: a rank was lost, and it is not known which, or why\n" in text
    assert f"explain      python -m launch explain {run.path} says why, " in text
    run.metrics.mkdir()
    writer = dataclasses.replace(
        Writer.this_process(rank=1, local_rank=1, interval_seconds=1), start_ticks=1
    )
    page = f"# TYPE {HEARTBEAT.name} gauge\n{HEARTBEAT.name} 1e12\n".encode()
    (run.metrics / "rank-00001.prom").write_bytes(render_rank_file(writer, page))
    assert f"state        failed: rank 1 on {writer.host} was killed\n" in status()


def test_status_tells_where_the_time_went(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    phases = {"forward_backward": 40.0, "data_wait": 10.0}
    interval = train_fields(10) | {"phase_seconds": phases}
    stopped = event("end", 10, 1_160, outcome="stopped")
    rows: list[Event] = [
        event("run", 0, 1_000, **start_fields()),
        event("train", 10, 1_050, **interval),
        event("run", 0, 1_100, **start_fields()),
        event("train", 10, 1_150, **interval),
    ]
    for row in (*rows, stopped):
        append(run.events, row)
    assert main(["status", str(run.path)]) == 0
    assert re.findall(r"^time +(.*)$", capsys.readouterr().out, re.MULTILINE) == [
        "goodput 25.0% of 2 min 40 s in 2 attempts, lost work 31.2%, "
        "down between attempts 31.2%, waiting for data 6.2%, stopping 6.2%; "
        "time in a queue is not known"
    ]


@pytest.mark.parametrize(
    ("answer", "outcome", "expected"),
    [
        ("JobState=RUNNING Reason=None NodeList=n[1-2]", None, "RUNNING on n[1-2]"),
        (
            "JobState=PENDING Reason=Resources NodeList=(null)",
            *("stopped", "PENDING: no free nodes (Resources)"),
        ),
        ("JobState=FAILED NodeList=n1", "stopped", "ended, as the run was stopped"),
        ("JobState=FAILED NodeList=n1", "failed", "FAILED on n1"),
        ("JobState=COMPLETED NodeList=n1", "completed", "COMPLETED on n1"),
        ("", "completed", "SLURM does not know it, or is not on this host"),
    ],
)
def test_what_slurm_says_is_reported_in_words(
    answer: str,
    outcome: str | None,
    expected: str,
    run: RunDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    history = RunHistory(run)
    history.write("run", 0, **start_fields())
    if outcome is not None:
        history.write("end", 5, outcome=outcome)
    history.close()
    (run.logs / "slurm-12.log").touch()
    for name, text in (("scontrol", answer), ("sacct", "")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name} >> {tmp_path}/asked\necho '{text}'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert main(["status", str(run.path)]) == 0
    assert f"SLURM        job 12: {expected}\n" in capsys.readouterr().out
    asked = (tmp_path / "asked").read_text().split()
    assert asked == (["scontrol"] if answer else ["scontrol", "sacct"]), "once"


def test_a_name_or_word_of_any_kind_stays_text_on_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path / "a b\x1b[31m\n")
    run.logs.mkdir(parents=True)
    history = RunHistory(run)
    history.write("run", 0, **start_fields())
    history.write("end", 15, outcome="failed", error="one\ntwo\x1b[31m\udcff")
    history.close()
    assert main(["status", str(run.path)]) == 0
    text = capsys.readouterr().out
    assert "state        failed: one\\ntwo\\x1b[31m\ufffd\n" in text
    assert f"launch explain $'{tmp_path}/a b\\033[31m\\012' says why" in text
    assert "\x1b" not in text


def test_what_happened_by_a_later_clock_is_not_said_to_be_long_ago(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    append(run.events, event("run", 0, time.time() + 900, **start_fields()))
    append(run.events, event("end", 1, time.time() + 1_000, outcome="completed"))
    assert main(["explain", str(run.path)]) == main(["status", str(run.path)]) == 0
    text = capsys.readouterr().out
    assert " UTC (0.0 s ago)" in text
    assert "last event   0 s ago\n" in text
