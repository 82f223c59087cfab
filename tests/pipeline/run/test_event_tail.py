"""Following a run's events while they are written, cut and replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.run.event_log import EventLog, read_rows
from pipeline.run.event_rows import row_of
from pipeline.run.event_tail import EventTail
from tests.pipeline.fake_run import event, start_fields, train_fields


def lines_of(num_rows: int) -> list[bytes]:
    rows = [event("run", 0, **start_fields(None))]
    rows += [event("train", step, **train_fields(step)) for step in range(1, num_rows)]
    return [json.dumps(row_of(row)).encode() + b"\n" for row in rows]


@given(cuts=st.lists(st.integers(0, 10_000), max_size=30), num_rows=st.integers(1, 12))
def test_rows_are_read_once_however_the_file_grows(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], num_rows: int
) -> None:
    path = tmp_path_factory.mktemp("run") / "events.jsonl"
    content = b"".join(lines_of(num_rows))
    tail, found, written = EventTail(path), [], 0
    assert tail.new_rows() == []
    for cut in [*sorted(cut for cut in cuts if cut < len(content)), len(content)]:
        with path.open("ab") as file:
            file.write(content[written:cut])
        written = cut
        found += tail.new_rows()
    assert found == list(read_rows(path))
    assert len(found) == num_rows
    assert tail.num_restarts == 0


def test_a_line_cut_by_a_kill_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    lines = lines_of(4)
    path.write_bytes(lines[0] + lines[1][:-5])
    tail = EventTail(path)
    assert [row.kind for row in tail.new_rows()] == ["run"]
    log = EventLog(path)  # ends the open line first
    log.write(event("train", 3, **train_fields(3)))
    log.close()
    assert [(row.kind, row.step) for row in tail.new_rows()] == [("train", 3)]


@pytest.mark.parametrize("is_cut", [True, False], ids=["cut", "replaced"])
def test_a_file_that_was_cut_or_replaced_is_read_again(tmp_path: Path, is_cut: bool) -> None:
    path = tmp_path / "events.jsonl"
    lines = lines_of(5)
    path.write_bytes(b"".join(lines))
    tail = EventTail(path)
    assert len(tail.new_rows()) == 5
    if is_cut:
        path.write_bytes(b"".join(lines[:2]))
    else:
        other = tmp_path / "other"
        other.write_bytes(b"".join(lines))
        other.replace(path)
    assert len(tail.new_rows()) == (2 if is_cut else 5)
    assert tail.num_restarts == 1


def test_json_that_is_no_row_is_told_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{}\nnonsense\n{"kind": "novelty", "step": 1, "epoch": 1, "time": 1}\n')
    tail = EventTail(path)
    assert tail.new_rows() == []
    assert len(tail.faults) == 1
    assert "it has no" in tail.faults[0]


def test_rows_of_a_newer_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    row = json.loads(lines_of(1)[0]) | {"format_version": 99}
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="99"):
        EventTail(path).new_rows()
