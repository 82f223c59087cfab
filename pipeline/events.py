"""`RUN/events.jsonl`: what happened in a run, one JSON object a line, appended by rank 0.

Every row has `kind`, `step` (optimizer updates done when it was written), `epoch` (a float:
`step / steps_per_epoch`) and `time` (Unix seconds). The kinds and what else they carry:

    run         a process group started: resumed_from (step or null), world_size, local_batch_size,
                accumulation_steps, global_batch_size, steps_per_epoch, target_steps, device,
                precision, num_train_samples, num_val_samples
    train       a log interval: loss, top1, learning_rate, images_per_second, data_wait_ratio,
                phase_seconds (seconds of each phase of metrics.PHASES in the interval, rank 0),
                skipped_steps (so far), grad_norm (or null)
    eval        an evaluation: split, top1, top5, loss, correct1, correct5, seen, expected, seconds
    checkpoint  a save: path, num_bytes, seconds, reason (metrics.CHECKPOINT_KINDS)
    alarm       something needs a look: reason (not_learning), loss
    signal      a stop request was agreed on: source (a signal's name, STOP file or
                end of torchrun)
    end         the process group left: outcome (completed | stopped | failed), and for `failed`
                the error
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

Kind = Literal["run", "train", "eval", "checkpoint", "alarm", "signal", "end"]
Event = dict[str, Any]

STOP_FILE = "STOP file"
"""Source of a `signal` row: somebody who wants the run to stop, and not to go on by itself."""

LOST_RANK = "lost another rank"
"""In the error of a process group that failed because one of its processes was gone."""


class EventLog:
    """Appends rows to one `events.jsonl`; a row is on its way to the disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab+")
        self._end_broken_line()

    def _end_broken_line(self) -> None:
        """Close a line that a killed writer left open, so that it spoils no row but itself."""
        if self._file.seek(0, os.SEEK_END) > 0:
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")

    def write(self, kind: Kind, *, step: int, epoch: float, **fields: Any) -> None:
        """Append one row. Raises `OSError` if the disk does not take it."""
        row = {"kind": kind, "step": step, "epoch": round(epoch, 6), "time": time.time(), **fields}
        self._file.write(json.dumps(_finite(row)).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def write_failure(path: Path, error: str) -> None:
    """Append the `end` row of an attempt that failed before its `run` row. Raises `OSError`."""
    history = read_events(path) if path.is_file() else []
    step, epoch = (history[-1]["step"], history[-1]["epoch"]) if history else (0, 0.0)
    log = EventLog(path)
    log.write("end", step=step, epoch=epoch, outcome="failed", error=error)
    log.close()


def _finite(value: Any) -> Any:
    """NaN and infinities as null: JSON has no name for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def read_events(path: Path) -> list[Event]:
    """The rows of the run's one history, oldest first.

    A run that was killed and resumed from step `k` did the steps after `k` twice: what the killed
    attempt logged after `k` is left out, so that steps never run backwards. A line broken by a
    kill is left out too.
    """
    history: list[Event] = []
    for row in read_rows(path):
        if row["kind"] == "run":
            resumed_from = row["resumed_from"] or 0
            history = [old for old in history if old["step"] <= resumed_from]
        history.append(row)
    return history


def count_resumes(path: Path) -> int:
    """How often the run went on from a checkpoint, in attempts too that left none themselves."""
    if not path.is_file():
        return 0
    return sum(row["kind"] == "run" and row["resumed_from"] is not None for row in read_rows(path))


def read_rows(path: Path, last_bytes: int | None = None) -> Iterator[Event]:
    """All rows, those too that a resume has made void; a line that is no row is left out.

    A kill may have broken it, or rank 0 is in the midst of writing it. With `last_bytes` only those
    rows that are whole in the file's last bytes.
    """
    with path.open("rb") as file:
        if last_bytes is not None:
            file.seek(max(0, file.seek(0, os.SEEK_END) - last_bytes))
        content = file.read()
    for line in content.splitlines():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and {"kind", "step", "epoch", "time"} <= row.keys():
                yield row
