"""The log of a run: what a kill leaves behind, and the one history of several attempts."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints
from unittest import mock

import numpy as np
import pytest

from pipeline.run.event_log import (
    EventLog,
    count_resumes,
    history_of,
    of_type,
    own_evaluations,
    read_events,
    read_rows,
    write_failure,
    write_submission,
)
from pipeline.run.event_rows import event_of, row_of
from pipeline.run.events import (
    EVENT_TYPES,
    Alarm,
    Before,
    EndEvent,
    Row,
    RunEvent,
    SignalEvent,
    SubmitEvent,
)
from tests.machine import DEADLINE_SECONDS
from tests.pipeline.fake_run import eval_fields, event, start_fields, train_fields

WRITE_FOR_EVER = """
import sys
from pathlib import Path
from pipeline.run.event_log import EventLog
from pipeline.run.events import EndEvent

log = EventLog(Path(sys.argv[1]))
step = 0
while True:
    log.write(EndEvent(step=step, epoch=step / 10, outcome="failed", error="x" * 5000))
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
    log.write(event("run", resumed_from or 0, **start_fields(resumed_from)))
    for step in steps:
        log.write(event("train", step, **train_fields(step)))
    log.close()


def find_faults(path: Path) -> list[str]:
    faults: list[str] = []
    list(read_rows(path, faults))
    return faults


def history(path: Path) -> list[tuple[str, int]]:
    return [(row.kind, row.step) for row in read_events(path)]


def test_a_row_is_one_line_of_json(path: Path) -> None:
    log = EventLog(path)
    before = time.time()
    log.write(EndEvent(step=7, epoch=1 / 3, outcome="failed", error="line\nbreak ü"))
    content = path.read_bytes()  # before the log is closed: the row is out of our hands already
    log.close()
    assert content.count(b"\n") == 1
    row = json.loads(content)
    assert before <= row.pop("time") <= time.time()
    assert row == {
        "kind": "end",
        "step": 7,
        "epoch": 0.333333,
        "outcome": "failed",
        "error": "line\nbreak ü",
    }
    (end,) = read_events(path)
    assert isinstance(end, EndEvent)
    assert end.error == "line\nbreak ü"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_what_json_has_no_name_for_is_null(path: Path, value: float) -> None:
    log = EventLog(path)
    seconds = {"other": value, "h2d": 1.0}
    trained = event("train", 1, **train_fields(1))
    log.write(dataclasses.replace(trained, loss=value, phase_seconds=seconds))
    log.close()
    (line,) = path.read_text().splitlines()
    row = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row["loss"] is None
    assert row["phase_seconds"] == {"other": None, "h2d": 1.0}


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
def test_a_line_that_is_no_row_is_left_out_and_reported(path: Path, line: bytes) -> None:
    write_steps(path, None, 10)
    path.write_bytes(path.read_bytes() + line + b"\n")
    (fault,) = find_faults(path)
    assert fault.startswith("line 3 is not an event: it ")
    assert count_resumes(read_rows(path)) == 0
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


def test_steps_done_twice_are_reported_once(path: Path) -> None:
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


class Counting(RunEvent):
    """Counts how often anybody looks at its step, and at the one that it has gone on from."""

    num_looks = 0

    def __getattribute__(self, name: str) -> Any:
        Counting.num_looks += name in ("step", "resumed_from")
        return super().__getattribute__(name)


def test_many_attempts_take_no_longer_for_each() -> None:
    """In a file that anyone may have written: each attempt is looked at once."""
    attempt = Counting(step=0, epoch=0.0, **start_fields() | {"resumed_from": 10**9})
    rows = [attempt] * 1000
    Counting.num_looks = 0
    assert len(history_of(rows)) == len(rows)
    assert Counting.num_looks == 2 * len(rows)


def test_a_full_disk_is_not_kept_secret() -> None:
    log = EventLog(Path("/dev/full"))
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            log.write(SignalEvent(step=1, epoch=0.1, source="SIGTERM"))
    log.close()


def test_each_resumption_counts_whatever_came_of_it(path: Path) -> None:
    assert count_resumes(read_rows(path)) == 0
    write_steps(path, None, 1, 2)
    for resumed_from in (None, 3, 3, 5, 3):
        write_steps(path, resumed_from, 7)
    path.write_bytes(path.read_bytes()[:-5])
    assert count_resumes(read_rows(path)) == 4
    write_steps(path, 3)
    assert count_resumes(read_rows(path)) == 5


VALUES = {int: 1, float: 0.5, str: "a", bool: True}
"""Of each type that a field may have, beside null, names and the seconds of phases."""


def types_of(of: type[Row]) -> dict[str, tuple[Any, ...]]:
    """Type, description and marks of each field."""
    hints = get_type_hints(of, include_extras=True)
    return {field.name: get_args(hints[field.name]) for field in dataclasses.fields(of)}


def value_of(hint: Any) -> object:
    """One that such a field may have."""
    if get_origin(hint) is Mapping:
        return {"other": 0.5}
    first, *_ = get_args(hint) or (hint,)
    return (
        first if isinstance(first, str) else VALUES[first] if first in VALUES else value_of(first)
    )


def declared_rows() -> list[dict[str, Any]]:
    """A row of every type with all its fields."""
    rows = []
    for of in EVENT_TYPES:
        row: dict[str, Any] = {"kind": of.kind} | (
            {"reason": of.reason} if issubclass(of, Alarm) else {}
        )
        for name, (hint, *_) in types_of(of).items():
            row[name] = value_of(hint)
        rows.append(row)
    return rows


DECLARED = declared_rows()


@pytest.mark.parametrize("row", DECLARED, ids=lambda row: f"{row['kind']}-{row.get('reason')}")
def test_a_row_has_exactly_its_declared_fields(row: dict[str, Any]) -> None:
    found = event_of(row)
    assert found is not None
    assert row_of(found) == row
    newer = event_of(row | {"surplus": 1})
    assert newer == found, "a newer version may have more"
    required = [
        name
        for name, (_, *marks) in types_of(type(found)).items()
        if not any(isinstance(mark, Before) for mark in marks)
        and name not in {*types_of(Row), "error", "cause"}
    ]
    assert required
    for name in required:
        with pytest.raises(ValueError, match=f"lacks {name}"):
            event_of({key: value for key, value in row.items() if key != name})


def test_a_row_of_a_newer_kind_is_kept_and_skipped(path: Path) -> None:
    """It is no fault, and no reader meets it; a kind that is no name is a fault."""
    write_steps(path, None, 10)
    newer = {"kind": "note", "step": 10, "epoch": 1.0, "time": 1.0, "text": "hello"}
    with path.open("a") as file:
        file.write(json.dumps(newer) + "\n")
    before = path.read_bytes()
    write_steps(path, 10, 20)
    assert path.read_bytes().startswith(before)
    assert history(path) == [("run", 0), ("train", 10), ("run", 10), ("train", 20)]
    assert find_faults(path) == []
    with pytest.raises(ValueError, match="its kind is 5, expected a text"):
        event_of(newer | {"kind": 5})


def test_reasons_that_are_not_declared_are_no_rows() -> None:
    with pytest.raises(ValueError, match="the reason of an alarm is 'fire', expected not_learning"):
        event_of({"kind": "alarm", "reason": "fire", "step": 1, "epoch": 1, "time": 1})


@pytest.mark.parametrize(
    ("kind", "name", "value", "expected"),
    [
        *(
            ("end", name, value, "a number")
            for name in ("step", "epoch", "time")
            for value in (None, "1", math.nan, math.inf, [1])
        ),
        ("end", "outcome", "burnt", "completed, stopped, failed"),
        ("end", "error", None, "a text"),
        ("signal", "source", 15, "a text"),
        ("run", "resumed_from", "10", "a number"),
        ("run", "target_steps", None, "a number"),
        ("train", "loss", "low", "a number"),
        ("train", "phase_seconds", None, "an object of numbers"),
        ("train", "phase_seconds", {"other": "1"}, "an object of numbers"),
        ("eval", "correct1", None, "a number"),
        ("checkpoint", "seconds", {}, "a number"),
        ("checkpoint", "reason", "whim", "periodic, best, preempt"),
        ("eval", "own_shards", 1, "true or false"),
        *(("end", "time", value, "Unix seconds") for value in (-1, 1e12, 1e300)),
    ],
)
def test_a_value_that_cannot_be_computed_with_makes_no_row(
    path: Path, kind: str, name: str, value: object, expected: str
) -> None:
    (row,) = (row for row in DECLARED if row["kind"] == kind)
    path.write_text(json.dumps(row | {name: value}) + "\n")
    assert list(read_rows(path)) == []
    (fault,) = find_faults(path)
    assert fault.startswith(f"line 1 is not an event: {name} of a '{kind}' row is ")
    assert fault.endswith(f", expected {expected}")


def test_a_number_that_is_not_finite_comes_back_as_one() -> None:
    """And a null that was meant is null."""

    def read(kind: str, **changes: object) -> Any:
        (row,) = (row for row in DECLARED if row["kind"] == kind)
        return event_of(row | changes)

    assert math.isnan(read("train", loss=None).loss)
    assert math.isnan(read("eval", loss=None).loss)
    assert read("train", grad_norm=None).grad_norm is None
    assert read("eval", top5=None).top5 is None
    assert read("train", phase_seconds={"other": None}).phase_seconds == {"other": None}


def test_phases_of_a_newer_version_are_left_out() -> None:
    (row,) = (row for row in DECLARED if row["kind"] == "train")
    assert event_of(row | {"phase_seconds": {"other": 0.5, "\udcff": 1}}) == event_of(row)


def test_rows_of_older_versions_are_read(path: Path) -> None:
    lines = [
        {"kind": "run", **start_fields()},
        {"kind": "eval", **eval_fields(5, 9, 10, 10)},
        {"kind": "alarm", "reason": "damaged_image", "what": "shard x, member y: cut off"},
    ]
    for added in ("shard_set", "by", "views", "manifest_sha256", "own_shards"):
        for line in lines:
            line.pop(added, None)
    every = {"step": 0, "epoch": 0, "time": 1}
    path.write_text("".join(json.dumps(every | line) + "\n" for line in lines))
    found: list[Any] = read_events(path)
    start, evaluation, alarm = found
    assert (start.shard_set, start.format_version) == (None, 1)
    assert (evaluation.by, evaluation.own_shards) == ("train", True)
    assert evaluation.views is None
    assert (alarm.rank, alarm.sample) == (0, None)
    assert own_evaluations([start, evaluation]) == [evaluation]


def test_several_processes_write_whole_rows(path: Path) -> None:
    """As a trainer and evaluations beside it do: no row is lost, torn or joined to another."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom pipeline.run import event_log\n"
        "from pipeline.run.event_log import EventLog\nfrom pipeline.run.events import EndEvent\n"
        f"event_log._LOCK_SECONDS = {DEADLINE_SECONDS}\n"  # no writer stands still for ever
        "log, error = EventLog(Path(sys.argv[1])), sys.argv[2] * 20_000\n"
        "for step in range(200):\n"
        "    log.write(EndEvent(step=step, epoch=0.0, outcome='failed', error=error))\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(path), letter]) for letter in "abc"
    ]
    assert [writer.wait(timeout=DEADLINE_SECONDS) for writer in writers] == [0, 0, 0]
    assert find_faults(path) == []
    assert len(path.read_bytes().splitlines()) == 600
    ends = of_type(read_rows(path), EndEvent)
    for letter in "abc":
        mine = [end for end in ends if end.error == letter * 20_000]
        assert [end.step for end in mine] == list(range(200))


@pytest.mark.slow
def test_a_writer_that_is_stuck_with_the_lock_stops_no_other(path: Path) -> None:
    path.touch()
    with path.open("ab") as stuck:
        fcntl.flock(stuck, fcntl.LOCK_EX)
        write_steps(path, None, 10)
    assert history(path) == [("run", 0), ("train", 10)]


def test_what_a_full_disk_cut_is_ended_by_the_next_row(path: Path) -> None:
    """Though the log is not opened anew in between."""
    log = EventLog(path)
    log.write(SignalEvent(step=1, epoch=0.1, source="SIGTERM"))
    with path.open("ab") as file:
        file.write(b'{"kind": "train", "st')
    log.write(SignalEvent(step=2, epoch=0.2, source="SIGTERM"))
    log.close()
    assert history(path) == [("signal", 1), ("signal", 2)]


def test_a_row_that_a_full_disk_took_in_part_is_there_once_when_it_is_written_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the disk has cut it, be it before its end of line."""
    row, write = SignalEvent(step=2, epoch=0.2, time=5.0, source="SIGTERM"), os.write
    num_bytes = len(json.dumps(row_of(row))) + 1
    outcomes = []
    for cut in range(num_bytes):
        room = cut

        def write_in_part(file: int, content: bytes) -> int:
            nonlocal room
            if not room:
                raise OSError(28, "No space left on device")
            written = write(file, content[:room])
            room -= written
            return written

        log = EventLog(path.with_name(f"{cut}.jsonl"))
        monkeypatch.setattr(os, "write", write_in_part)
        try:
            log.write(row)
            outcomes.append("written")
        except OSError:
            outcomes.append("refused")
        monkeypatch.setattr(os, "write", write)
        if outcomes[-1] == "refused":
            log.write(row)
        log.write(dataclasses.replace(row, step=3))
        log.close()
        assert [found.step for found in read_rows(path.with_name(f"{cut}.jsonl"))] == [2, 3], cut
    assert outcomes == ["refused"] * (num_bytes - 1) + ["written"]


def test_an_early_failure_is_where_training_was(path: Path) -> None:
    """And not where an old checkpoint was that was evaluated since."""
    write_steps(path, None, 10, 20)
    log = EventLog(path)
    log.write(event("eval", 10, **eval_fields(5, 9, 10, 10) | {"by": "evaluate"}))
    log.close()
    write_failure(path, "no room", began=5.0)
    assert history(path)[-2:] == [("eval", 10), ("end", 20)]
    assert of_type(read_rows(path), EndEvent)[-1].began == 5


def test_a_failure_after_the_start_row_began_with_it(path: Path) -> None:
    log = EventLog(path)
    log.write(event("start", 0, 10.0, began=5.0, heard=None))
    log.close()
    write_failure(path, "no room", began=5.0)
    assert of_type(read_rows(path), EndEvent)[-1].began is None


def test_the_start_row_of_an_attempt_that_was_killed_is_not_that_of_the_next(path: Path) -> None:
    log = EventLog(path)
    log.write(event("start", 0, 10.0, began=5.0, heard=None))
    log.close()
    write_failure(path, "no room", began=20.0)
    assert of_type(read_rows(path), EndEvent)[-1].began == 20


def test_a_submission_whose_row_cannot_be_written_is_one_all_the_same(path: Path) -> None:
    write_steps(path, None, 1)
    with mock.patch.object(Path, "open", side_effect=OSError(errno.EIO, "broken")):
        write_submission(path, "slurm", "7", 5.0)
    assert of_type(read_rows(path), SubmitEvent) == []


def texts_of(of: type[Row]) -> dict[str, str]:
    return {name: text for name, (_, text, *_) in types_of(of).items()}


def test_the_docs_have_every_field() -> None:
    page = (Path(__file__).parents[3] / "docs/operations.md").read_text()
    tables = {"every row": {"kind": "which of these rows it is"} | texts_of(Row)}
    for of in EVENT_TYPES:
        title = f"`alarm`, `reason` `{of.reason}`" if issubclass(of, Alarm) else f"`{of.kind}`"
        own = texts_of(of).items() - texts_of(Row).items()
        tables[title] = {name: text for name, text in texts_of(of).items() if (name, text) in own}
    expected = [
        f"| {title} | {'; '.join(f'`{name}`: {text}' for name, text in fields.items())} |"
        for title, fields in tables.items()
    ]
    begin = page.index(expected[0])
    assert page[begin:].splitlines()[: len(expected)] == expected


@pytest.mark.parametrize("name", ["world_size", "local_batch_size", "steps_per_epoch"])
@pytest.mark.parametrize("value", [0, -1])
def test_counts_that_others_divide_by_are_not_zero(name: str, value: int) -> None:
    whole = row_of(event("run", 0, **start_fields()))
    assert event_of(whole) is not None
    with pytest.raises(ValueError, match=f"{name} of a 'run' row is {value}; expected at least 1"):
        event_of(whole | {name: value})
