"""A clock of fetches on which only silence takes time: no machine is too slow for a deadline."""

from __future__ import annotations

import select
from collections.abc import Callable
from types import SimpleNamespace
from typing import BinaryIO

import pytest

from pipeline.data.cache import remote


def let_only_silence_last(monkeypatch: pytest.MonkeyPatch, is_silent: Callable[[], bool]) -> None:
    """Let any deadline of a fetch pass where nothing has come and `is_silent`, and no other."""
    now = [0.0]

    class Poll:
        def __init__(self) -> None:
            self._poll = select.poll()

        def register(self, file: BinaryIO, events: int) -> None:
            self._poll.register(file, events)

        def poll(self, milliseconds: float) -> list[tuple[int, int]]:
            found = self._poll.poll(milliseconds)
            if not found and is_silent():
                now[0] += 1e9
            return found

    monkeypatch.setattr(remote, "select", SimpleNamespace(poll=Poll, POLLIN=select.POLLIN))
    monkeypatch.setattr(remote, "time", SimpleNamespace(monotonic=lambda: now[0]))
