"""The lines of rank 0 that people read, at a terminal or in the log of a batch job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TextIO


class Console:
    """Writes whole lines to `stream`, if there is one.

    A command's streams cannot fail it: see `data_prep.shard_set.streams`.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def line(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(f"{text}\n")
            self._stream.flush()

    def table(self, rows: Mapping[str, str]) -> None:
        """Names and values, aligned."""
        width = max(map(len, rows))
        for name, value in rows.items():
            self.line(f"  {name:<{width}}  {value}")


def counted(number: int, noun: str) -> str:
    """Such as '1 rank' and '1,000 ranks'."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
