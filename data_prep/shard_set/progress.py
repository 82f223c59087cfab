"""Shows the progress of a long job: a bar on a terminal, else a line every few seconds."""

from __future__ import annotations

import shutil
import time
from typing import TextIO

_BAR_SECONDS = 0.2
_LINE_SECONDS = 5.0
_BAR_COLUMNS = 30


class Progress:
    """Shows on `stream` how many items are done; `unit` names them."""

    def __init__(
        self, title: str, unit: str, stream: TextIO, *, num_before: int = 0, item_bytes: int = 0
    ) -> None:
        """`num_before` items were done at another time: they count, but not in the rate.

        With `item_bytes`, the size of each, bytes a second are shown too.
        """
        self._title = title
        self._unit = unit
        self._stream = stream
        self._num_before = num_before
        self._item_bytes = item_bytes
        self._is_terminal = stream.isatty()
        self._begin = self._last_shown = time.monotonic()
        self._done = self._total = num_before

    def show(self, done: int, total: int) -> None:
        """Report that `done` of `total` items are done; may be called at any rate."""
        self._done, self._total = done, total
        now = time.monotonic()
        if now - self._last_shown >= (_BAR_SECONDS if self._is_terminal else _LINE_SECONDS):
            self._last_shown = now
            self._write(now)

    def close(self) -> None:
        """Show the last state, unless nothing was shown so far."""
        if self._last_shown != self._begin:
            self._write(time.monotonic())
            if self._is_terminal:
                self._stream.write("\n")

    def _write(self, now: float) -> None:
        rate = (self._done - self._num_before) / max(now - self._begin, 1e-9)
        text = f"{self._done:,} of {self._total:,} {self._unit}, {rate:,.0f} a second"
        if self._item_bytes:
            text += f", {rate * self._item_bytes / 1e9:.2f} GB/s"
        if rate > 0 and self._done < self._total:
            text += f", {_duration((self._total - self._done) / rate)} left"
        if not self._is_terminal:
            self._stream.write(f"{self._title}: {text}\n")
        else:
            filled = _BAR_COLUMNS * self._done // max(self._total, 1)
            line = f"{self._title} {'█' * filled}{'░' * (_BAR_COLUMNS - filled)} {text}"
            columns = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r{line[:columns].ljust(columns)}")
        self._stream.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
