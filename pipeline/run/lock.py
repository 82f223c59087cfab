"""The lock that gives a run directory to one job at a time."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from data_prep.shard_set import locks
from pipeline.run.directory import RunDirectory

_GLANCE_SECONDS = 1.0
"""Others hold the lock so long at most to see whether it is free."""

LOG_VARIABLE = "ALEXNET_LOG"
"""Environment variable in which a launcher tells ranks the file of what they write."""

MAKE_ROOM = "for the next start of the same job\n"
"""In a STOP file: it is not for that start, should that be killed before it removes it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobStart:
    """Which start of a SLURM job this is."""

    job: str
    number: int
    """0: the first."""

    def is_after(self, other: JobStart) -> bool:
        return self.job == other.job and self.number > other.number


@dataclass(frozen=True, slots=True)
class _Holder:
    host: str = ""
    start: JobStart | None = None
    log: str = ""

    def __str__(self) -> str:
        job = "another job" if self.start is None else f"job {self.start.job}"
        return f"{job} on {self.host}" if self.host else job


def lock_run(run: RunDirectory, start: JobStart | None, wait_seconds: float, log: str = "") -> int:
    """Lock the run directory until this process ends; returns the open file that holds the lock.

    `log` is the file of what the job writes, if that is known.

    An earlier start of the same SLURM job may still be training, on a node that SLURM has lost
    sight of. It is asked to save and leave, and waited for.
    Raises `ValueError` if another job has the run, or if the earlier start has not left in time.
    """
    handle = os.open(_path(run), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if not locks.lock_if_possible(handle, _path(run), wait_seconds=_GLANCE_SECONDS):
            _wait_for_earlier_start(run, handle, start, wait_seconds)
        _sign(handle, _Holder(socket.gethostname(), start, log))
    except BaseException:
        os.close(handle)
        raise
    return handle


def is_locked(run: RunDirectory) -> bool | None:
    """Whether a job has the run; None where that cannot be known."""
    return locks.is_locked(_path(run))


def log_at_work(run: RunDirectory) -> Path | None:
    """The log of the job that has the run, if there is one and its log is known."""
    if is_locked(run) is not True:
        return None
    handle = os.open(_path(run), os.O_RDONLY | os.O_CLOEXEC)
    try:
        holder = _holder(handle)
    finally:
        os.close(handle)
    logs = [Path(holder.log)] if holder.log else []
    logs += [run.logs / f"slurm-{holder.start.job}.log"] if holder.start else []
    return next((log for log in logs if log.is_file()), None)


def _path(run: RunDirectory) -> Path:
    return run.path / ".lock"


def _wait_for_earlier_start(
    run: RunDirectory, handle: int, start: JobStart | None, wait_seconds: float
) -> None:
    holder = _holder(handle)
    if start is None or holder.start is None or not start.is_after(holder.start):
        raise ValueError(
            f"{run.path} is in use by {holder}: wait for its end, or give another --run-dir"
        )
    _log.warning("an earlier start of this job still trains on %s: asked to leave", holder.host)
    run.stop_request.write_text(MAKE_ROOM)
    has_left = locks.lock_if_possible(handle, _path(run), wait_seconds=wait_seconds)
    run.stop_request.unlink(missing_ok=True)  # it may have died without heeding it
    if not has_left:
        raise ValueError(
            f"{run.path} is in use by an earlier start of {holder}, which has not left for "
            f"{wait_seconds:g} s: see to that host, then submit again"
        )


def _sign(handle: int, holder: _Holder) -> None:
    """Leave word of who has the run, which is of use only to others."""
    start = holder.start and {"job": holder.start.job, "number": holder.start.number}
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        signature = {"host": holder.host, "start": start, "log": holder.log}
        os.pwrite(handle, json.dumps(signature).encode(), 0)


def _holder(handle: int) -> _Holder:
    try:
        left = json.loads(os.pread(handle, 4096, 0))
        start = left["start"] and JobStart(**left["start"])
        return _Holder(left["host"], start, left.get("log", ""))
    except (OSError, ValueError, TypeError, KeyError):  # of another version, or just being written
        return _Holder()
