"""What a part has found so far, in a file that is whole at any time."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any, Literal

from data_prep.shard_set.files import write_atomically

Outcome = Literal["done", "left out", "failed", "out of time", "not started"]


class LeftOut(Exception):
    """Something cannot be measured here; the text says why."""


class Results:
    """Figures by name. Each is on the disk once it is known: the process may be ended at any time.

    A figure that could not be had is `{"left out": why}`, or `{"failed": why}`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.figures: dict[str, Any] = {}

    def add(self, name: str, figure: Any) -> None:
        self.figures[name] = figure
        self._write({})

    def end(self, outcome: Outcome, why: str = "") -> None:
        """The part is over."""
        self._write({"outcome": outcome} | ({"why": why} if why else {}))

    def _write(self, end: dict[str, Any]) -> None:
        write(self._path, end | {"figures": self.figures})


def write(path: Path, content: Any) -> None:
    """As JSON, by a rename."""
    write_atomically(path, json.dumps(content, indent=1).encode() + b"\n", durable=False)


def failed(error: Exception) -> dict[str, str]:
    """One figure's; what more there is to know goes to the part's log."""
    traceback.print_exception(error)
    return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}


def left_out(why: object) -> dict[str, str]:
    return {"left out": str(why)}
