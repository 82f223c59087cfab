"""The lines of rank 0 that people read, at a terminal or in the log of a batch job."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO


class Console:
    """Writes whole lines to `stream`, until it is closed or full.

    What its encoding lacks becomes a question mark.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def line(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(_encodable(text, self._stream) + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # a log on a full disk, a pipe whose reader has left
            _discard(self._stream)
            self._stream = None

    def table(self, rows: Mapping[str, str]) -> None:
        """Names and values, aligned."""
        width = max(map(len, rows))
        for name, value in rows.items():
            self.line(f"  {name:<{width}}  {value}")


def counted(number: int, noun: str) -> str:
    """Such as '1 rank' and '1,000 ranks'."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _encodable(text: str, stream: TextIO) -> str:
    encoding = stream.encoding or "utf-8"  # a StringIO has none
    return text.encode(encoding, errors="replace").decode(encoding)


def _discard(stream: TextIO) -> None:
    """Discard what `stream` could not take; else the process fails on it when it ends."""
    with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
