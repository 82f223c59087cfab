"""`RUN/events.jsonl`: what happened in a run, one JSON object a line; see `pipeline.run.events`.

Rank 0 of training appends, and so does `pipeline.evaluate`, perhaps at the same time: each row is
one write at the end of the file. Readers see whole rows in the order in which they were written.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from data_prep.shard_set.locks import try_lock, unlock
from pipeline.run.ending import EndOutcome, FailureCause
from pipeline.run.event_rows import event_of, row_of
from pipeline.run.events import EndEvent, EvalEvent, Event, Row, RunEvent
from pipeline.run.format_version import EVENTS_VERSION, check_format_version

E = TypeVar("E", bound=Row)

_BLOCK_BYTES = 1 << 16

_LOCK_SECONDS = 1.0
"""A writer that is stopped while it holds the lock does not stop the others."""


class EventLog:
    """Appends rows to one `events.jsonl`; a row is on its way to the disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        """Raises `OSError` if the file cannot be opened."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._is_regular = stat.S_ISREG(os.fstat(self._file).st_mode)

    def write(self, event: Event) -> None:
        """Append the event's row. Raises `OSError` if the disk does not take it."""
        line = json.dumps(row_of(event)).encode() + b"\n"
        with self._locked():
            if self._is_line_open():  # by a kill or a full disk: it must spoil no other row
                line = b"\n" + line
            while line:  # once, unless the disk is nearly full
                line = line[os.write(self._file, line) :]

    def close(self) -> None:
        os.close(self._file)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other writers out; on file systems without locks, or if one is stuck, go on."""
        is_held = False
        with contextlib.suppress(OSError):
            is_held = self._is_regular and try_lock(self._file, wait_seconds=_LOCK_SECONDS)
        try:
            yield
        finally:
            if is_held:
                unlock(self._file)

    def _is_line_open(self) -> bool:
        size = os.fstat(self._file).st_size if self._is_regular else 0
        return size > 0 and os.pread(self._file, 1, size - 1) != b"\n"


def write_last_word(path: Path, step: int, epoch: float, outcome: EndOutcome) -> None:
    """Append the `end` row that a kill has kept the last process group from writing, if it has.

    A run of which all is done is `completed`, whatever a later command said of it. The time is
    that of the row before: when the process group was last heard of. Raises `OSError`.
    """
    last = last_of_training(path)
    if isinstance(last, EndEvent) and outcome in (last.outcome, "stopped"):
        return
    heard = time.time() if last is None else last.time
    _append(path, EndEvent(step=step, epoch=epoch, time=heard, outcome=outcome))


def write_failure(path: Path, error: str, cause: FailureCause | None = None) -> None:
    """Append the `end` row of an attempt that failed before its `run` row. Raises `OSError`."""
    history = of_training(read_events(path)) if path.is_file() else []
    step, epoch = (history[-1].step, history[-1].epoch) if history else (0, 0.0)
    end = EndEvent(step=step, epoch=epoch, outcome="failed", error=error, cause=cause)
    _append(path, end)


def _append(path: Path, event: Event) -> None:
    log = EventLog(path)
    log.write(event)
    log.close()


def read_events(path: Path) -> list[Event]:
    """The rows of the run's one history, oldest first: see `history_of`."""
    return history_of(read_rows(path))


def history_of(rows: Iterator[Event] | Sequence[Event]) -> list[Event]:
    """What of all `rows` is true of the run as it is.

    A run that was killed and resumed from step `k` did the steps after `k` twice: what the killed
    attempt logged after `k` is left out, so that steps of training never run backwards.
    """
    history: list[Event] = []
    for row in rows:
        if isinstance(row, RunEvent):
            resumed_from = row.resumed_from or 0
            history = [old for old in history if old.step <= resumed_from]
        history.append(row)
    return history


def of_type(events: Iterable[Event], wanted: type[E]) -> list[E]:
    return [row for row in events if isinstance(row, wanted)]


def of_training(events: Sequence[Event]) -> list[Event]:
    """Without the evaluations that `pipeline.evaluate` made, whenever that was."""
    return [row for row in events if not isinstance(row, EvalEvent) or row.by == "train"]


def own_evaluations(events: Sequence[Event]) -> list[EvalEvent]:
    """Evaluations of `val` of the shard set that the run trains on, oldest first.

    The last one is the newest: what the run's accuracy is, wherever it is told.
    """
    return [row for row in of_type(events, EvalEvent) if row.split == "val" and row.own_shards]


def count_resumes(path: Path) -> int:
    """How often the run went on from a checkpoint, in attempts too that left none themselves."""
    if not path.is_file():
        return 0
    return sum(row.resumed_from is not None for row in of_type(read_rows(path), RunEvent))


def read_rows(path: Path) -> Iterator[Event]:
    """All rows, those too that a resume has made void.

    Left out is a line that is no row, which a kill may have broken, or which is just being written;
    of others `find_faults` tells. So is a row of a kind that a newer version has added.
    Raises `ValueError` if rows are of a newer format version than this program reads.
    """
    for _, row in _objects(path.read_bytes().splitlines()):
        if isinstance(row, dict) and row.get("kind") == "run":
            check_format_version(row.get("format_version", 1), EVENTS_VERSION, path)
        if (event := _event_or_none(row)) is not None:
            yield event


def check_readable(path: Path) -> None:
    """Raise `ValueError` if rows are of a newer format version than this program reads."""
    if path.is_file():
        for _ in read_rows(path):
            pass


def last_of_training(path: Path) -> Event | None:
    """The last row that is no evaluation, of any number of which may follow it.

    None without one. An `end` row says how the run was left; any other, that it was begun since.
    Rows of a newer format version are not refused: an exporter shows of them what it can.
    """
    if not path.is_file():
        return None
    for _, row in _objects(_lines_from_the_end(path)):
        event = _event_or_none(row)
        if event is not None and not isinstance(event, EvalEvent):
            return event
    return None


def _event_or_none(row: object) -> Event | None:
    with contextlib.suppress(ValueError):
        return event_of(row)
    return None


def _lines_from_the_end(path: Path) -> Iterator[bytes]:
    """The lines, last one first; no more of the file is read than is asked for."""
    with path.open("rb") as file:
        position, first = file.seek(0, os.SEEK_END), b""
        while position > 0:
            num_bytes = min(_BLOCK_BYTES, position)
            position -= num_bytes
            file.seek(position)
            first, *lines = (file.read(num_bytes) + first).split(b"\n")
            yield from reversed(lines)
        yield first


def find_faults(path: Path) -> list[str]:
    """A sentence for each line that is JSON, and yet no row."""
    faults = []
    for number, row in _objects(path.read_bytes().splitlines()):
        try:
            event_of(row)
        except ValueError as error:
            faults.append(f"line {number} is not an event: {error}")
    return faults


def _objects(lines: Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    """The lines that are JSON, with their numbers from 1."""
    for number, line in enumerate(lines, 1):
        with contextlib.suppress(ValueError, RecursionError):
            yield number, json.loads(line)
