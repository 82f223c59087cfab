"""Faults that a rank commits itself, in its main thread, when the signal of their kind arrives.

The handlers are Python's, so that they run between two of its instructions, and whatever process a
rank is forked from hands them on.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from typing import Literal, NoReturn

InnerKind = Literal["exception", "segfault", "abort", "sleep", "GIL held"]

_FIRST = signal.SIGRTMIN + 8
"""Some of the first real-time signals are taken by tools such as valgrind."""


class CausedError(Exception):
    """What the fault `exception` raises: no exception of the project's."""


def _raise() -> NoReturn:
    raise CausedError("an exception that was caused on purpose")


def _read_address_zero() -> None:
    ctypes.string_at(0)


def _sleep() -> None:
    while True:
        time.sleep(3600)


def _hold_gil() -> None:
    """Wait in C for a lock that nobody opens: no other thread of Python has a turn any more."""
    library, lock = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    for _ in range(2):  # a mutex of zeros is open at first, and no signal ends the second wait
        library.pthread_mutex_lock(lock)


_ACTIONS: dict[InnerKind, Callable[[], object]] = {
    "exception": _raise,
    "segfault": _read_address_zero,
    "abort": os.abort,
    "sleep": _sleep,
    "GIL held": _hold_gil,
}

SIGNALS: dict[InnerKind, int] = {kind: _FIRST + place for place, kind in enumerate(_ACTIONS)}


def listen() -> None:
    """Commit the fault of a kind when its signal arrives."""
    for kind, action in _ACTIONS.items():
        signal.signal(SIGNALS[kind], lambda *_, action=action: action())
