"""What goes to the page: text that no terminal obeys, the ends of logs, and what JSON can say."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.shard_set.files import describe

_LOG_BYTES, _LOG_LINES = 1 << 16, 60

_COMMANDS = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -~])")
"""To a terminal: colours, titles, moves of the cursor."""


def plain(text: str) -> str:
    """`text` without a terminal's commands; U+FFFD stands for other characters without a shape."""
    text = _COMMANDS.sub("", text.replace("\t", "    "))
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def shown(value: Any) -> Any:
    """`value` with plain texts and short numbers, and None for those that JSON cannot say."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: shown(part) for key, part in value.items()}
    return [shown(part) for part in value] if isinstance(value, list | tuple) else value


def last_lines(path: Path) -> list[str]:
    """The end of a log, however long it is; of a line that was drawn over again, what was last.

    Of one that cannot be read, why.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_BYTES))
            lines = file.read().decode(errors="replace").rstrip().split("\n")
    except OSError as error:
        return [f"cannot be read: {describe(error)}"]
    return [line.rstrip("\r").rpartition("\r")[2] for line in lines[-_LOG_LINES:]]
