"""The lines of rank 0 that people read, at a terminal or in a log; and how numbers are said."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import TextIO

from data_prep.shard_set.streams import say


class Console:
    """Writes whole lines to `stream`, if there is one.

    A command's streams cannot fail it: see `data_prep.shard_set.streams`.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def line(self, text: str) -> None:
        if self._stream is not None:
            say(text, stream=self._stream)

    def table(self, rows: Mapping[str, str]) -> None:
        """Names and values, aligned."""
        width = max(map(len, rows))
        for name, value in rows.items():
            self.line(f"  {name:<{width}}  {value}")


def counted(number: int, noun: str) -> str:
    """Such as '1 rank' and '1,000 ranks'."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds as people say them, such as '3 h 05 min'."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def utc(timestamp: float) -> str:
    """Unix seconds as date and time, UTC."""
    moment = datetime.datetime.fromtimestamp(timestamp, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S")
