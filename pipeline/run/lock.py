"""The lock that gives a run directory to one job at a time."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep.shard_set import locks
from data_prep.shard_set.typed import check_types, read_json
from pipeline.run.directory import RunDirectory

_GLANCE_SECONDS = 1.0
"""Longer than others hold the lock to see whether it is free."""

LOG_VARIABLE = "ALEXNET_LOG"
"""Environment variable: the log file of the ranks, as their launcher names it."""

MAKE_ROOM = "for the next start of the same job\n"
"""Content of a STOP file that asks only the earlier starts of a job to stop."""

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

    `log` is the job's log file, if it is known. An earlier start of the same SLURM job may still be
    training, on a node that SLURM has lost sight of: it is asked to save and leave, and waited for.
    Raises `ValueError` if another job has the run, or if the earlier start has not left in time.
    """
    handle = os.open(_path(run), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if not locks.lock_if_possible(handle, _path(run), wait_seconds=_GLANCE_SECONDS):
            _wait_for_earlier_start(run, handle, start, wait_seconds)
        signature = json.dumps(asdict(_Holder(socket.gethostname(), start, log)))
        with contextlib.suppress(OSError):  # a full disk: others will not know which job it is
            os.ftruncate(handle, 0)
            os.pwrite(handle, signature.encode(), 0)
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
    holder = _holder(run)
    logs = [Path(holder.log)] if holder.log else []
    logs += [run.logs / f"slurm-{holder.start.job}.log"] if holder.start else []
    is_file = os.path.isfile  # unlike Path's, False for a name that is too long
    return next((log for log in logs if is_file(log)), None)


def _path(run: RunDirectory) -> Path:
    return run.path / ".lock"


def _wait_for_earlier_start(
    run: RunDirectory, handle: int, start: JobStart | None, wait_seconds: float
) -> None:
    holder = _holder(run)
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


def _holder(run: RunDirectory) -> _Holder:
    """The job that has the run, as its lock file names it."""
    try:
        left = read_json(_path(run).read_bytes())
        start = left["start"] and JobStart(**left["start"])
        holder = _Holder(left["host"], start, left.get("log", ""))
        check_types(holder, _Holder, "")
        return holder
    except (OSError, ValueError, TypeError, KeyError):
        # Of another version, or just being written.
        return _Holder()
