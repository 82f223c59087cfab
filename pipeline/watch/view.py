"""One run as the page shows it. Its files are read again where they have changed, events once."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.explain.explain import explain
from pipeline.explain.explanation import Explanation
from pipeline.metrics.outcomes import AT_WORK, RunStatus, read_run_status, state_of
from pipeline.run.directory import RunDirectory
from pipeline.run.event_tail import EventTail
from pipeline.run.ledger import SECOND_CLASSES
from pipeline.run.lock import is_locked, log_at_work
from pipeline.run.phase import PHASE_LABELS
from pipeline.watch.history import History
from pipeline.watch.rank_times import RankTimes
from pipeline.watch.text import last_lines

_MAX_SPARKS = 40

_EXPLAIN_SECONDS = 30.0
"""How long an explanation of a run at work is kept: for it all events are read."""


class RunView:
    """What is known of one run; nothing outside of the folder `root` is read."""

    def __init__(self, run: RunDirectory, root: Path) -> None:
        self._run, self._root = run, root
        self._lock = threading.Lock()
        self._tail, self._history = EventTail(run.events), History()
        self._num_restarts = 0
        self._times = RankTimes()
        self._status = RunStatus(outcome=None, ended=None, ranks=(), num_damaged=0)
        self._seen: object = None
        self._explained: Explanation | None = None
        self._explained_for: object = None
        self.summary: Mapping[str, Any] = {"state": "being read"}
        """For the list of all runs."""

    def refresh(self, now: float) -> None:
        """Read what is new; `now` is in Unix seconds.

        Raises `OSError`, and `ValueError` if there is something that cannot be shown.
        """
        self._run.check_entries(self._root)
        signs = self._signs()
        if signs == self._seen and self._status.outcome != "running":
            return
        with self._lock:
            self._read_events()
            self._status = read_run_status(self._run, socket.gethostname(), now)
            self._times.add(self._status.ranks, now)
            self._seen, self.summary = signs, self._summarized()

    def _read_events(self) -> None:
        """From the first one on if they are not those that were there, or cannot be read."""
        if not self._run.events.exists():
            self._tail, self._history = EventTail(self._run.events), History()
        try:
            rows = self._tail.new_rows()
        except ValueError:  # the tail would go on behind what it cannot read
            self._tail, self._history = EventTail(self._run.events), History()
            raise
        if self._tail.num_restarts != self._num_restarts:
            self._num_restarts, self._history = self._tail.num_restarts, History()
        for row in rows:
            self._history.add(row)

    def _signs(self) -> object:
        """What differs once there is something to read."""
        stats = [path.stat() for path in (self._run.events, self._run.metrics) if path.exists()]
        marks = [(each.st_ino, each.st_size, each.st_mtime_ns) for each in stats]
        return marks, is_locked(self._run)

    def _summarized(self) -> dict[str, Any]:
        history, train, start = self._history, self._history.train, self._history.start
        points, evaluation = history.trains.points, history.evaluations[-1:]
        state, step = state_of(self._status, [start] if start else []), history.step
        if state == "training":  # the events have only the ends of log intervals
            step = max(step, self._status.step)
        return {
            "state": state,
            "is_at_work": state in AT_WORK,
            "since": start and start.time,
            "alarms": history.num_alarms,
            "step": step,
            "target": start and start.target_steps,
            "epoch": start and step / start.steps_per_epoch,
            "epochs": start and start.target_steps / start.steps_per_epoch,
            "loss": train and train.loss,
            "speed": train and train.images_per_second,
            "wait": train and train.data_wait_ratio,
            "top1": evaluation[0].top1 if evaluation else None,
            "top5": evaluation[0].top5 if evaluation else None,
            "spark": [point[2] for point in points[:: len(points) // _MAX_SPARKS + 1]],
        }

    def detail(self, now: float) -> dict[str, Any]:
        """All that the page shows of the run."""
        with self._lock:
            history, status = self._history, self._status
            ledger = history.ledger.ledger(now, is_at_work=status.outcome == "running")
            log, explanation = self._log(), self._explanation(now)
            return {
                **self.summary,
                "sentence": explanation and explanation.sentence,
                "next": explanation and explanation.next,
                "saved": history.saved and [history.saved.step, history.saved.time],
                "start": history.start and dataclasses.asdict(history.start),
                "train": history.trains.points,
                "val": history.evaluation_points,
                "marks": history.marks,
                "phases": PHASE_LABELS,
                "ranks": self._times.rows(status.ranks, socket.gethostname(), now),
                "num_ranks": len(status.ranks),
                "classes": SECOND_CLASSES,
                "ledger": ledger and dataclasses.asdict(ledger) | {"goodput": ledger.goodput},
                "alarm_rows": history.told(alarms=True),
                "event_rows": history.told(alarms=False),
                "log": log and str(log.relative_to(self._root)),
                "lines": log and last_lines(log),
                "faults": [*self._tail.faults[-3:]],
            }

    def _explanation(self, now: float) -> Explanation | None:
        """What `launch explain` said last; it is asked again, in a thread, where that may differ.

        Of a run at work others than its files are not asked.
        """
        is_at_work = self.summary.get("is_at_work", False)
        key: object = self._seen
        if is_at_work:
            key = self.summary["state"], self.summary["alarms"], now // _EXPLAIN_SECONDS
        if key != self._explained_for:
            self._explained_for = key
            threading.Thread(target=self._explain, args=(now, not is_at_work), daemon=True).start()
        return self._explained and dataclasses.replace(self._explained, now=now)

    def _explain(self, now: float, asks: bool) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._explained = explain(self._run, now, asks=asks)

    def _log(self) -> Path | None:
        """The log at work, or the newest; a launcher may have its log anywhere."""
        found = log_at_work(self._run) or self._run.newest_log
        path = found and found.resolve()
        return path if path and path.is_relative_to(self._root) else None
