"""The job that trains: a launcher on each node, started again whenever it has left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.under_fire.nodes import NUM_NODES, Nodes
from benchmarks.under_fire.processes import descendants, reap
from benchmarks.under_fire.schedule import NUM_RANKS
from pipeline.metrics.rank_file import Writer, rank_file_name, read_writer
from pipeline.run.directory import RunDirectory
from pipeline.run.ending import ExitCode
from pipeline.run.event_tail import EventTail
from pipeline.run.events import EndEvent, Event, RunEvent, StartEvent, TrainEvent

ROOT = Path(__file__).parents[2]
RANKS_PER_NODE = NUM_RANKS // NUM_NODES

_POLL_SECONDS = 0.05
_REAP_SECONDS = 2.0
_FRESH_SECONDS = 1.0
"""A job whose last step is older does not train at the moment."""
_PATIENCE_SECONDS = 240.0
"""What it may take to train again: torchrun's rendezvous alone may wait for two minutes."""


class JobError(Exception):
    """The job has ended in a way that it should not, or does not train any more."""


class Job:
    """Its processes are ended by whoever ends all of this process's."""

    def __init__(
        self, nodes: Nodes, run: RunDirectory, arguments: Sequence[object], max_restarts: int
    ) -> None:
        self.run = run
        self.rows: list[Event] = []
        """All events so far."""
        self.num_starts = 0
        """Of launchers."""
        self._nodes = nodes
        self._arguments = list(map(str, arguments))
        self._max_restarts = max_restarts
        self._tail = EventTail(run.events)
        self._reaped = 0.0
        self._launchers = [self._start(node) for node in range(NUM_NODES)]

    def _start(self, node: int) -> subprocess.Popen[bytes]:
        self.num_starts += 1
        meeting = ["--nproc", RANKS_PER_NODE, "--nodes", NUM_NODES, "--node-rank", node]
        meeting += ["--rendezvous", self._nodes.place, "--max-restarts", self._max_restarts]
        words = [sys.executable, "-m", "launch", "local", *map(str, meeting), *self._arguments]
        environment = os.environ | {
            "GLOO_SOCKET_IFNAME": self._nodes.device,
            "PYTHONPATH": f"{Path(__file__).with_name('in_ranks')}:{ROOT}",
        }
        return subprocess.Popen(
            self._nodes.command_on(node, words),
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def tend(self, *, restarts: bool = True) -> None:
        """Read what is new, and start a launcher again that was stopped or has failed.

        Raises `JobError` if one has left otherwise.
        """
        self.rows += self._tail.new_rows()
        if time.monotonic() > self._reaped + _REAP_SECONDS:
            self._reaped = time.monotonic()
            reap([pid for pid in descendants() if pid not in {one.pid for one in self._launchers}])
        for node, launcher in enumerate(self._launchers):
            code = launcher.poll()
            if code is None or not restarts:
                continue
            if code not in (ExitCode.STOPPED, ExitCode.FAILED):
                raise JobError(f"node {node} has left with exit code {code}")
            self._launchers[node] = self._start(node)

    def tend_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.tend()
            time.sleep(_POLL_SECONDS)

    def wait_until(self, is_so: Callable[[], bool], what: str, *, restarts: bool = True) -> None:
        """Tend the job until then. Raises `JobError` if it does not come about in minutes."""
        last = time.monotonic(), len(self.rows)
        self.tend(restarts=restarts)
        while not is_so():
            now = time.monotonic(), len(self.rows)
            if now[1] > last[1]:
                last = now
            elif now[0] > last[0] + _PATIENCE_SECONDS:
                raise JobError(f"{_PATIENCE_SECONDS:g} s after the last event still not {what}")
            time.sleep(_POLL_SECONDS)
            self.tend(restarts=restarts)

    @property
    def step(self) -> int:
        """The last one that was done."""
        return next((row.step for row in reversed(self.rows) if isinstance(row, TrainEvent)), 0)

    def trains(self) -> bool:
        """Whether steps are being done, and all ranks have said who they are."""
        marks = StartEvent | RunEvent | TrainEvent | EndEvent
        last = next((row for row in reversed(self.rows) if isinstance(row, marks)), None)
        if not isinstance(last, TrainEvent):
            return False
        is_fresh = time.time() < last.time + _FRESH_SECONDS
        return is_fresh and None not in map(self.process_of, range(NUM_RANKS))

    def has_begun_since(self, moment: float) -> bool:
        """Whether an attempt has begun since (Unix seconds)."""
        begun = [row for row in self._of_attempt() if isinstance(row, RunEvent)]
        return bool(begun) and begun[0].time > moment

    def num_steps(self) -> int:
        """Of the last attempt."""
        return sum(isinstance(row, TrainEvent) for row in self._of_attempt())

    def _of_attempt(self) -> Iterator[Event]:
        """The events of the last one, newest first, with the row that it began with."""
        for row in reversed(self.rows):
            yield row
            if isinstance(row, RunEvent):
                break

    def process_of(self, rank: int) -> Writer | None:
        """Who publishes as that rank, if the process is alive."""
        try:
            writer = read_writer(self.run.metrics / rank_file_name(rank))
        except (OSError, ValueError):
            return None
        return writer if writer.is_running else None

    def has_left(self) -> bool:
        return all(launcher.poll() is not None for launcher in self._launchers)

    @property
    def exit_codes(self) -> list[int | None]:
        return [launcher.poll() for launcher in self._launchers]
