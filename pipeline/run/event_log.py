"""`RUN/events.jsonl`: what happened in a run, one JSON object a line; see `pipeline.run.events`.

Rank 0 of training, `pipeline.evaluate` and `launch` append, perhaps at the same time: each row is
one write at the end of the file. Readers see whole rows in the order in which they were written.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from data_prep.shard_set.locks import try_lock, unlock
from data_prep.shard_set.typed import read_json
from pipeline.run.ending import EndOutcome, FailureCause
from pipeline.run.event_rows import event_of, row_of
from pipeline.run.events import (
    EndEvent,
    EvalEvent,
    Event,
    Row,
    RunEvent,
    StartEvent,
    SubmitEvent,
    SubmittedTo,
)
from pipeline.run.format_version import EVENTS_VERSION, check_format_version

E = TypeVar("E", bound=Row)

_TAIL_BYTES = 1 << 20

_LOCK_SECONDS = 1.0
"""After that a writer goes on without the lock: the one that holds it may be suspended."""


class EventLog:
    """Appends rows to one `events.jsonl`; a row is on its way to the disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        """Raises `OSError` if the file cannot be opened."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._is_regular = stat.S_ISREG(os.fstat(self._file).st_mode)

    def write(self, event: Event) -> None:
        """Append the event's row. Raises `OSError` if the disk does not take it."""
        line = json.dumps(row_of(event)).encode() + b"\n"
        is_locked = False
        with contextlib.suppress(OSError):  # without locks, or if a writer is stuck, it goes on
            is_locked = self._is_regular and try_lock(self._file, wait_seconds=_LOCK_SECONDS)
        try:
            if self._is_line_open():  # by a kill or a full disk: it must spoil no other row
                line = b"\n" + line
            while line:  # once, unless the disk is nearly full
                line = line[os.write(self._file, line) :]
        except OSError:
            if line != b"\n":  # else the row is there, and the next one ends its line
                raise
        finally:
            if is_locked:
                unlock(self._file)

    def close(self) -> None:
        os.close(self._file)

    def _is_line_open(self) -> bool:
        size = os.fstat(self._file).st_size if self._is_regular else 0
        return size > 0 and os.pread(self._file, 1, size - 1) != b"\n"


def append(path: Path, event: Event) -> None:
    """Write one row. Raises `OSError`."""
    log = EventLog(path)
    log.write(event)
    log.close()


def write_last_word(path: Path, step: int, epoch: float, outcome: EndOutcome) -> None:
    """Append the `end` row that a kill has kept the last process group from writing, if it has.

    A run that is `completed` is so whatever a later command said of it. The row has the time of the
    one before: when the process group was last heard of. Raises `OSError`.
    """
    last = last_of_training(path)
    if isinstance(last, EndEvent) and outcome in (last.outcome, "stopped"):
        return
    heard = time.time() if last is None else last.time
    append(path, EndEvent(step=step, epoch=epoch, time=heard, outcome=outcome))


def write_failure(
    path: Path, error: str, cause: FailureCause | None = None, began: float | None = None
) -> None:
    """Append the `end` row of an attempt that has no journal. Raises `OSError`.

    `began` is when it did, if it may have failed before its `start` row.
    """
    history = of_training(read_events(path))
    # The last row may be of a checkpoint that steps were done after.
    step, epoch = max(((row.step, row.epoch) for row in history), default=(0, 0.0))
    last = history[-1] if history else None
    if began is not None and isinstance(last, StartEvent) and last.time >= began:  # its own
        began = None
    append(
        path,
        EndEvent(step=step, epoch=epoch, outcome="failed", error=error, cause=cause, began=began),
    )


def write_submission(path: Path, to: SubmittedTo, job: str | None, submitted: float) -> None:
    """Append the `submit` row of a job that `launch` has submitted. A bad disk costs the row."""
    with contextlib.suppress(OSError):
        last = last_of_training(path)
        step, epoch = (0, 0.0) if last is None else (last.step, last.epoch)
        append(path, SubmitEvent(step=step, epoch=epoch, time=submitted, to=to, job=job))


def end_of(path: Path) -> int:
    """The size of `events.jsonl` in bytes: rows that are written later are behind it."""
    return path.stat().st_size if path.is_file() else 0


def read_events(path: Path, after: int = 0) -> list[Event]:
    """The rows of the run's one history, oldest first; `path` is that of `events.jsonl`.

    Only those behind its first `after` bytes: a clock may be set back, and the file only grows. Not
    those that a later attempt has made void, see `history_of`; for the rest see `read_rows`.
    """
    return history_of(read_rows(path, after=after))


def history_of(rows: Iterable[Event]) -> list[Event]:
    """Those of all `rows` that no later attempt has made void.

    A run that was killed and resumed from step `k` did the steps after `k` twice: what the killed
    attempt logged after `k` is left out, so that steps of training never run backwards.
    """
    history: list[Event] = []
    last_step = math.inf
    for row in reversed([*rows]):
        if row.step <= last_step:
            history.append(row)
        if isinstance(row, RunEvent):
            last_step = min(last_step, row.resumed_from or 0)
    return history[::-1]


def of_type(events: Iterable[Event], wanted: type[E]) -> list[E]:
    """Those of one type, such as `EvalEvent`."""
    return [row for row in events if isinstance(row, wanted)]


def of_training(events: Sequence[Event]) -> list[Event]:
    """What process groups wrote.

    So no submissions, and no evaluations by `pipeline.evaluate`: both may come at any time.
    """
    return [
        row
        for row in events
        if not isinstance(row, SubmitEvent)
        and not (isinstance(row, EvalEvent) and row.by == "evaluate")
    ]


def attempts_of(events: Sequence[Event]) -> list[list[Event]]:
    """The rows of training of each process group, one at least, in their order."""
    groups: list[list[Event]] = []
    for row in of_training(events):
        last = groups[-1][-1] if groups else None
        is_first = isinstance(row, StartEvent) or last is None or isinstance(last, EndEvent)
        is_first |= isinstance(row, RunEvent) and not isinstance(last, StartEvent)
        if is_first or (isinstance(row, EndEvent) and row.began is not None):
            groups.append([])
        groups[-1].append(row)
    return groups


def waiting_job(events: Sequence[Event]) -> SubmitEvent | None:
    """What was submitted to a queue last, unless a process group has written a row since."""
    *_, last = (None, *(row for row in events if not isinstance(row, EvalEvent)))
    return last if isinstance(last, SubmitEvent) and last.to == "slurm" else None


def own_evaluations(events: Sequence[Event]) -> list[EvalEvent]:
    """Evaluations of `val` of the shard set that the run trains on, oldest first.

    The last one is the newest: it gives the run's accuracy everywhere.
    """
    return [row for row in of_type(events, EvalEvent) if row.split == "val" and row.own_shards]


def count_resumes(rows: Iterable[Event]) -> int:
    """How often the run went on from a checkpoint; `rows` are all, void attempts included."""
    return sum(row.resumed_from is not None for row in of_type(rows, RunEvent))


def read_rows(path: Path, faults: list[str] | None = None, *, after: int = 0) -> Iterator[Event]:
    """All rows behind the first `after` bytes, also those that a resume has made void.

    None if there is no file. Left out is a line that is not JSON, which a kill may have cut or
    which is just being written, a row of a kind that a newer version has added, and, with a
    sentence in `faults`, JSON that is no row. Raises `ValueError` if rows are of a newer format
    version than this program reads.
    """
    content = path.read_bytes()[after:] if path.is_file() else b""
    for number, row in _objects(content.split(b"\n")):
        if isinstance(row, dict) and row.get("kind") == "run":
            check_format_version(row.get("format_version", 1), EVENTS_VERSION, path)
        event = None
        try:
            event = event_of(row)
        except ValueError as error:
            if faults is not None:
                faults.append(f"line {number} is not an event: {error}")
        if event is not None:
            yield event


def last_of_training(path: Path) -> Event | None:
    """The last row that is no evaluation and no submission; None if there is none.

    After an `end` row the run has not begun again. Only the last MiB is read, as an exporter asks
    often. Rows of a newer format version are not refused: it shows what it can.
    """
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        lines = file.read().split(b"\n")
    for _, row in _objects(reversed(lines)):
        with contextlib.suppress(ValueError):
            event = event_of(row)
            if event is not None and not isinstance(event, EvalEvent | SubmitEvent):
                return event
    return None


def _objects(lines: Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    """The lines that are JSON, with their numbers from 1."""
    for number, line in enumerate(lines, 1):
        with contextlib.suppress(ValueError):
            yield number, read_json(line)
