"""Stopping early: asked for by a signal or a file, agreed on by all ranks between two steps."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from data_prep.shard_set.files import sync_directory
from pipeline.config.timeouts import POLL_SECONDS
from pipeline.ranks.failure import waiting_for_ranks
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.world import World
from pipeline.run.directory import RunDirectory
from pipeline.run.ending import STOP_SIGNALS, StopSource, handled_signals, process_start_ticks
from pipeline.run.lock import MAKE_ROOM

_SOURCES = (None, *StopSource)
"""By the number that ranks agree on, the greatest of several."""

JOB_BEGIN = "ALEXNET_JOB_BEGIN"
"""Environment variable: when the job began, in Unix seconds. It may have done other work first."""

_INTERRUPT_SECONDS = 2.0
"""A Ctrl-C this long after the first does not wait for the step. Under torchrun one press comes
twice, from the terminal and from torchrun, and counts once."""

_MAX_POLL_STEPS = 64


class StopSignals:
    """Notes signals that ask for a stop, and does nothing else: no save is ever half done.

    Made before the ranks connect. From then on a rank that torchrun ends, because another one has
    failed, lives long enough to say why.
    """

    def __init__(self) -> None:
        self.noted: StopSource | None = None
        self._interrupt_from = math.inf
        for number in handled_signals():
            signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.noted = StopSource[signal.Signals(number).name]
        if number != signal.SIGINT:
            return
        if time.monotonic() > self._interrupt_from:
            raise KeyboardInterrupt
        self._interrupt_from = min(self._interrupt_from, time.monotonic() + _INTERRUPT_SECONDS)

    def ignore(self) -> None:
        """Ignore further signals, such as torchrun's when another rank has left before this one."""
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def remove_old_request(run: RunDirectory, environment: LaunchEnvironment) -> bool:
    """Remove a STOP file from before the job started; returns whether there was one.

    A younger one is for this job, which may have been checking nodes or restarting ranks at the
    time; so is any one for a SLURM job that was requeued.
    """
    try:
        if environment.start is not None and environment.start.number > 0:
            is_old = run.stop_request.read_bytes() == MAKE_ROOM.encode()
        else:
            is_old = run.stop_request.stat().st_mtime < begin_of_job(environment)
    except FileNotFoundError:
        return False
    if is_old:
        _remove(run.stop_request)
    return is_old


def _remove(request: Path) -> None:
    """For good: after a power cut it would be for a job that is queued again."""
    request.unlink(missing_ok=True)
    sync_directory(request.parent)


def begin_of_job(environment: LaunchEnvironment) -> float:
    """In Unix seconds: as the job's script says it, else when its first process here started."""
    if JOB_BEGIN in os.environ:
        return float(os.environ[JOB_BEGIN])
    return _start_of(environment.agent or environment.supervisor or os.getpid())


def begin_of_attempt(environment: LaunchEnvironment) -> float:
    """In Unix seconds: that of the job, or of this rank if the ranks have begun anew.

    Never before the job's: by a clock that was set back meanwhile a rank may be older.
    """
    job, own = begin_of_job(environment), environment.began or _start_of(os.getpid())
    is_first = environment.began is None and environment.attempt == 0
    return (job or own) if is_first else max(job, own)


def _start_of(pid: int) -> float:
    """In Unix seconds; 0 if there is no such process."""
    ticks = process_start_ticks(pid)
    if ticks is None:
        return 0.0
    start_seconds = ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - start_seconds)


class StopRequests:
    """Lets the ranks agree on requests to stop.

    Every few steps the ranks start a small reduction over the control group, and look at its result
    a few steps later, so that no rank waits for it. It also carries the number of steps until then,
    so that all ranks look after the same step.
    """

    def __init__(self, world: World, run: RunDirectory, signals: StopSignals) -> None:
        self._world = world
        self._file = run.stop_request
        self._signals = signals
        self._pending: tuple[dist.Work | None, torch.Tensor] = None, torch.tensor([0, -1])
        self._next_poll_step = 0
        self._last_poll: tuple[int, float] | None = None
        """Its step and time."""

    def agreed(self, step: int) -> StopSource | None:
        """The source of a request that all ranks now know, or None; called after every step."""
        if step < self._next_poll_step:
            return None
        source, distance = self._wait_for_poll()
        if source:
            self._signals.noted = source  # for ranks that outlive another one before all have left
            if self._world.is_main and source is StopSource.STOP_FILE:
                with contextlib.suppress(OSError):  # what stays is older than the next start
                    _remove(self._file)
            return source
        self._next_poll_step = step + distance
        self._start(step)
        return None

    def _start(self, step: int) -> None:
        asked = self._signals.noted
        parent = self._world.environment.parent
        if parent is not None and parent != os.getppid():  # nobody looks after this rank any more
            asked = StopSource.END_OF_LAUNCHER
        if self._world.is_main and self._is_file_there():
            asked = StopSource.STOP_FILE
        # The slowest rank decides: the maximum of what is negative is the smallest distance.
        values = torch.tensor([_SOURCES.index(asked), -self._distance(step)])
        self._pending = self._world.start_max(values), values

    def _is_file_there(self) -> bool:
        try:
            return self._file.exists()
        except OSError:  # of a network file system, which may answer the next time
            return False

    def _distance(self, step: int) -> int:
        """Steps until the next look, by the time since the last one.

        At most twice as many as since then: the first steps may only have been queued on a device.
        """
        now = time.monotonic()
        last_step, last_time = self._last_poll or (step, now)
        self._last_poll = step, now
        num_steps = step - last_step
        due = num_steps * POLL_SECONDS / max(now - last_time, 1e-6)
        return max(1, min(int(due), 2 * num_steps, _MAX_POLL_STEPS))

    @waiting_for_ranks()
    def _wait_for_poll(self) -> tuple[StopSource | None, int]:
        """Agreed source and distance to the next look, in steps."""
        work, values = self._pending
        if work is not None:
            work.wait()
        number, distance = values.tolist()
        return _SOURCES[number], -distance

    def close(self) -> None:
        """End a reduction still under way; the ranks are at the same step, so all are in it."""
        self._wait_for_poll()
