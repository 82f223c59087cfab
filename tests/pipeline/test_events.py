"""The log of a run: what a kill leaves behind, and the one history of several attempts."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.events import EventLog, count_resumes, read_events

WRITE_FOR_EVER = """
import sys
from pathlib import Path
from pipeline.events import EventLog

log = EventLog(Path(sys.argv[1]))
step = 0
while True:
    log.write("train", step=step, epoch=step / 10, loss=1.5, padding="x" * 5000)
    step += 1
    if step == 200:
        print("running", flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def write_steps(path: Path, resumed_from: int | None, *steps: int) -> None:
    """One attempt: its `run` event and a `train` event after each of `steps`."""
    log = EventLog(path)
    log.write("run", step=resumed_from or 0, epoch=0.0, resumed_from=resumed_from)
    for step in steps:
        log.write("train", step=step, epoch=step / 10)
    log.close()


def history(path: Path) -> list[tuple[str, int]]:
    return [(row["kind"], row["step"]) for row in read_events(path)]


def test_a_row_is_one_line_of_json(path: Path) -> None:
    log = EventLog(path)
    before = time.time()
    log.write("eval", step=7, epoch=1 / 3, split="val", note="line\nbreak ü", skipped=None)
    content = path.read_bytes()  # before the log is closed: the row is out of our hands already
    log.close()
    assert content.count(b"\n") == 1
    row = json.loads(content)
    assert before <= row.pop("time") <= time.time()
    assert row == {
        "kind": "eval",
        "step": 7,
        "epoch": 0.333333,
        "split": "val",
        "note": "line\nbreak ü",
        "skipped": None,
    }
    assert read_events(path)[0]["note"] == "line\nbreak ü"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_what_json_has_no_name_for_is_null(path: Path, value: float) -> None:
    log = EventLog(path)
    log.write("train", step=1, epoch=0.1, loss=value, phases={"a": value, "b": [1.0, value]})
    log.close()
    (line,) = path.read_text().splitlines()
    row = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row["loss"] is None
    assert row["phases"] == {"a": None, "b": [1.0, None]}


def test_a_log_goes_on_where_it_was(path: Path) -> None:
    write_steps(path, None, 10, 20)
    write_steps(path, 20, 30)
    assert history(path) == [("run", 0), ("train", 10), ("train", 20), ("run", 20), ("train", 30)]
    assert len(path.read_bytes().splitlines()) == 5


@pytest.mark.parametrize("num_lost_bytes", [1, 2, 30])
def test_a_line_that_was_cut_spoils_no_other(path: Path, num_lost_bytes: int) -> None:
    write_steps(path, None, 10, 20)
    path.write_bytes(path.read_bytes()[:-num_lost_bytes])
    write_steps(path, 20, 30)
    whole = [("train", 20)] if num_lost_bytes == 1 else []  # only its line's end was lost
    assert history(path) == [("run", 0), ("train", 10), *whole, ("run", 20), ("train", 30)]


def test_a_row_with_bytes_that_are_no_text_is_left_out(path: Path) -> None:
    write_steps(path, None, 10)
    path.write_bytes(path.read_bytes() + b'{"kind": "train", "step\xff\x00\n')
    write_steps(path, 10, 20)
    assert history(path) == [("run", 0), ("train", 10), ("run", 10), ("train", 20)]


@pytest.mark.parametrize("line", [b"{}", b"5", b"null", b'[{"kind": "run"}]', b'{"kind": "run"}'])
def test_a_line_that_is_no_row_is_left_out(path: Path, line: bytes) -> None:
    write_steps(path, None, 10)
    path.write_bytes(path.read_bytes() + line + b"\n")
    assert count_resumes(path) == 0
    write_steps(path, 10, 20)
    assert history(path) == [("run", 0), ("train", 10), ("run", 10), ("train", 20)]


def test_a_killed_writer_loses_its_last_line_at_most(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_FOR_EVER, str(path)], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"running\n"
        writer.kill()
    steps = [step for _, step in history(path)]
    assert len(steps) >= 200
    assert steps == list(range(len(steps)))
    write_steps(path, len(steps), len(steps) + 1)
    assert history(path)[-2:] == [("run", len(steps)), ("train", len(steps) + 1)]


def test_steps_done_twice_are_told_once(path: Path) -> None:
    write_steps(path, None, 10, 20, 30, 40)
    write_steps(path, 20, 30, 50)
    assert history(path) == [
        ("run", 0),
        ("train", 10),
        ("train", 20),
        ("run", 20),
        ("train", 30),
        ("train", 50),
    ]


def test_each_attempt_takes_back_what_it_does_again(path: Path) -> None:
    write_steps(path, None, 10, 20)
    write_steps(path, 10, 20, 30)
    write_steps(path, 20, 25)
    assert history(path) == [
        ("run", 0),
        ("train", 10),
        ("run", 10),
        ("train", 20),
        ("run", 20),
        ("train", 25),
    ]


def test_an_attempt_without_a_checkpoint_begins_the_history_anew(path: Path) -> None:
    write_steps(path, None, 10, 20)
    write_steps(path, None, 10)
    assert history(path) == [("run", 0), ("run", 0), ("train", 10)]


def test_a_full_disk_is_not_kept_secret() -> None:
    log = EventLog(Path("/dev/full"))
    with pytest.raises(OSError, match="No space left"):
        log.write("train", step=1, epoch=0.1)
    with pytest.raises(OSError, match="No space left"):
        log.close()


def test_each_resumption_counts_whatever_came_of_it(path: Path) -> None:
    assert count_resumes(path) == 0
    write_steps(path, None, 1, 2)
    for resumed_from in (None, 3, 3, 5, 3):
        write_steps(path, resumed_from, 7)
    path.write_bytes(path.read_bytes()[:-5])
    assert count_resumes(path) == 4
    write_steps(path, 3)
    assert count_resumes(path) == 5
