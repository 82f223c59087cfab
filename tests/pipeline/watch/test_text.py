"""What goes to the page is text and nothing else."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.watch.text import last_lines, plain, shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;a title\x07text", "text"),
        ("\x1b]8;;http://host\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b[2J\x1b[Hclear", "clear"),
        ("a\tb", "a    b"),
        ("bell\x07 nul\0", "bell\ufffd nul\ufffd"),
        ("user\u202egnp.exe", "user\ufffdgnp.exe"),
        ("byte \udcff", "byte \ufffd"),
        ("<b>Ärger</b> 図 – é", "<b>Ärger</b> 図 – é"),
    ],
)
def test_no_terminal_obeys_it(text: str, expected: str) -> None:
    assert plain(text) == expected


@given(st.recursive(st.text() | st.floats() | st.none(), lambda part: st.lists(part)))
def test_all_that_is_shown_is_json_of_printable_text(value: object) -> None:
    text = json.dumps(shown(value), allow_nan=False, ensure_ascii=False)
    assert text.isprintable()
    text.encode()


def test_numbers_that_json_cannot_say_are_null() -> None:
    found = shown({"a": (math.nan, math.inf, 0.123456789, 3, True, None)})
    assert found == {"a": [None, None, 0.123457, 3, True, None]}


def test_of_a_huge_log_the_end_is_read(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    with log.open("wb") as file:
        file.truncate(1 << 40)  # nothing but zeros
        file.seek(0, 2)
        file.write(b"\n".join(b"line %d" % number for number in range(1000)) + b"\n\n")
    lines = last_lines(log)
    assert lines[-1] == "line 999"
    assert len(lines) == 60


def test_of_a_log_that_cannot_be_read_it_says_why(tmp_path: Path) -> None:
    assert last_lines(tmp_path) == [f"cannot be read: {tmp_path}: Is a directory"]


def test_of_a_bar_that_is_drawn_over_again_the_last_state_is_shown(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(b"\xff\r\n 10 %\r 20 %\r100 %\r\nend")
    assert last_lines(log) == ["\ufffd", "100 %", "end"]
