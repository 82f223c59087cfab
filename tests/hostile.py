"""Names as nobody should choose them: of files, classes, hosts and runs. Declared once."""

from __future__ import annotations

import re

import pytest

from data_prep.shard_set.files import as_text, printable

NAMES = {
    "title": "\x1b]0;owned\x07",
    "clear": "\x1b[2J\x1b[Hx",
    "c1": "a\x9b2Jb",
    "line": "one\nerror: forged",
    "return": "one\rerror: forged",
    "separators of lines": "a\u2028error: forged\x85error: forged\x0bc\x0cd",
    "substitution": "$(touch HACKED)",
    "backticks": "`touch HACKED`",
    "commands": "a; touch HACKED & touch HACKED || touch HACKED #",
    "pattern": "*?[a-z]{b,c}",
    "quotes": "it's \"so\" ''",
    "backslashes": "\\n\\\\x\\",
    "option": "-rf",
    "long option": "--help",
    "home": "~root",
    "script": "<script>alert(1)<!--",
    "attribute": "\"><img src=x onerror='alert(1)'>",
    "entity": "&lt;b&gt; &#0;",
    "templates": "{{ 7 * 7 }} ${HOME} %(x)s %s {0} @@{x} {% x",
    "markdown": "[x](javascript:alert) `code` ``` *b* |a| $y$ ![i](j)",
    "right to left": "user\u202egpj.exe",
    "no width": "a\u200bb\u200dc\ufeff",
    "spaces": " a  b ",
    "tab": "a\tb",
    "letters": "größe 猫",
    "no UTF-8": "a\udcffb",
    "long": "n" * 255,
    "hidden": "..x",
    "reserved": "#a@b,c=d%41",
}

each_name = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)

TEXTS = {kind: name for kind, name in NAMES.items() if as_text(name) == name}
"""Those that are text, as a class name in JSON is."""


ALL_KINDS = "".join(
    NAMES[kind]
    for kind in (
        *("title", "line", "c1", "substitution", "quotes", "backslashes", "option", "script"),
        *("pattern", "templates", "reserved", "no UTF-8"),
    )
)
"""One name, as long as a file may have with some letters more."""

VISIBLE = [name for name in NAMES.values() if not name.startswith(".")]
"""Those that a listing of a folder shows."""


def assert_plain(text: str) -> None:
    """Nothing in the lines that people read gives orders or begins a line of its own."""
    assert [line for line in text.removesuffix("\n").split("\n") if not line.isprintable()] == []
    assert not re.search("^error: forged", text, re.MULTILINE)


def is_shown(name: str, text: str) -> bool:
    return printable(name) in text
