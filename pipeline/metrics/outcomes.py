"""How a run and its ranks stand, read from the run directory, and the metrics that say so.

    running    at work, or about to be
    completed  the run's last step is done
    stopped    left before that, as it was asked to
    failed     left with an error
    killed     gone without a last word

A job that is killed, alone or with its node, can publish nothing. So these metrics come from those
who see the run directory: the node's exporter, and `python -m launch prometheus` on any host.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, assert_never

from prometheus_client import Metric
from prometheus_client.registry import Collector

from data_prep.shard_set.families import collected
from data_prep.shard_set.files import as_text
from pipeline.config.timeouts import KEPT_SECONDS
from pipeline.metrics.declared import (
    DISK_FREE,
    DISK_SIZE,
    GLOBAL_STEP,
    RANK_OUTCOME,
    RUN_OUTCOME,
)
from pipeline.metrics.ledgers import LedgerFamilies, RunLedger
from pipeline.metrics.rank_file import PATTERN, RankFile, read_rank_file
from pipeline.run.directory import RunDirectory
from pipeline.run.ending import RUN_OUTCOMES, EndOutcome, RunOutcome
from pipeline.run.event_log import last_of_training
from pipeline.run.events import EndEvent, RunEvent
from pipeline.run.lock import is_locked

RunState = Literal["has not started", "starting", "training", EndOutcome, "was killed"]
"""The same in words, such that they follow 'it', with two for a run that is running."""

AT_WORK: tuple[RunState, RunState] = ("starting", "training")

_LEAVING_SECONDS = 30.0
"""If the lock is still held this long after an `end` row, the run has begun again."""

_LATELY_SECONDS = 3600.0
"""A run without a lock whose files are older than this has ended long ago."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """How a run stands; times are in Unix seconds."""

    outcome: RunOutcome | None
    """None if it has never begun."""
    ended: float | None
    """None while it is running; of a killed one, the latest time at which it may have lived."""
    ranks: tuple[RankFile, ...]
    """Of the newest attempt, on all hosts."""
    num_damaged: int
    """Files of ranks that cannot be read."""

    @property
    def step(self) -> int:
        """The newest that a rank has published: the events have only those of log intervals."""
        return int(max((file.value(GLOBAL_STEP) or 0 for file in self.ranks), default=0))


def read_run_status(run: RunDirectory, host: str, now: float) -> RunStatus:
    """How the run stands, as seen from `host`."""
    files, num_damaged = [], 0
    for path in sorted(run.metrics.glob(PATTERN)):
        try:
            files.append(read_rank_file(path))
        except (OSError, ValueError):
            num_damaged += 1
    # A job restarted on fewer ranks does not overwrite the files of all its former ones. But ranks
    # do not begin at once, and one may be killed before it publishes again.
    begin = max((file.writer.since for file in files), default=0.0)
    ranks = tuple(
        file
        for file in files
        if file.heartbeat >= begin - file.writer.interval_seconds
        or file.outcome(host, now) == "running"
    )
    outcome, ended = _outcome_and_end(run, ranks, host, now)
    return RunStatus(outcome=outcome, ended=ended, ranks=ranks, num_damaged=num_damaged)


def state_of(run_status: RunStatus, starts: Sequence[RunEvent]) -> RunState:
    """The state in words; `starts` are the beginnings of process groups, the last one last."""
    match run_status.outcome:
        case None:
            return "has not started"
        case "running":
            since = max((rank.writer.since for rank in run_status.ranks), default=0.0)
            return AT_WORK[bool(starts) and starts[-1].time > since]
        case "killed":
            return "was killed"
        case "completed" | "stopped" | "failed":
            return run_status.outcome
        case unknown:
            assert_never(unknown)


def _outcome_and_end(
    run: RunDirectory, ranks: Sequence[RankFile], host: str, now: float
) -> tuple[RunOutcome | None, float | None]:
    """The lock of the run directory and the ranks' files say whether the run is at work.

    Either is enough, because some file systems have no locks across hosts, and a run may publish
    no metrics.
    """
    last = last_of_training(run.events)
    has_lock = is_locked(run)
    if isinstance(last, EndEvent):
        is_left = not has_lock or now - last.time < _LEAVING_SECONDS
        # Rank 0 has written that row, by the clock by which it publishes.
        leaders = [rank.writer for rank in ranks if rank.writer.rank == 0]
        if is_left and not any(leader.since > last.time for leader in leaders):
            return last.outcome, last.time
    is_alive = has_lock or any(rank.outcome(host, now) == "running" for rank in ranks)
    if is_alive or (has_lock is None and not ranks):
        return "running", None
    signs = [rank.heartbeat + rank.max_silence_seconds for rank in ranks]
    if last is not None:  # a job that was only submitted has not begun
        with contextlib.suppress(FileNotFoundError):
            signs.append(run.events.stat().st_mtime)
    return ("killed", max(signs)) if signs else (None, None)


class RootOutcomes(Collector):
    """How the runs below `root` and their ranks stand: those at work, or that ended lately."""

    def __init__(self, root: Path, host: str) -> None:
        self._root = root
        self._host = host
        self._ledgers: dict[Path, RunLedger] = {}

    def collect(self) -> list[Metric]:
        now, families, ledgers = time.time(), OutcomeFamilies(), LedgerFamilies()
        shown = {}
        for run in map(RunDirectory, sorted(self._root.iterdir())):
            run_status = None
            with contextlib.suppress(OSError, ValueError):  # else it would hide the others
                if run.path.is_dir() and _may_be_shown(run, now):
                    run.check_entries()
                    run_status = read_run_status(run, self._host, now)
            if run_status is None or run_status.outcome is None:
                continue
            if now - (run_status.ended or now) > KEPT_SECONDS:
                continue
            families.add_run(run, run_status.outcome, run=run.name)
            shown[run.path] = ledger = self._ledgers.get(run.path) or RunLedger(run)
            ledgers.add(ledger.at(now, run_status.outcome), run=run.name)
            for rank in run_status.ranks:
                outcome = rank.outcome(self._host, now)
                families.add_rank(rank, outcome, run=run.name, node=rank.writer.host)
        self._ledgers = shown  # others are read anew, should they be shown again
        return [*families.all, *ledgers.all]


def _may_be_shown(run: RunDirectory, now: float) -> bool:
    """A quick look, because there may be thousands of old runs."""
    times = []
    for path in (run.events, run.metrics):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times, default=0.0) > now - _LATELY_SECONDS or is_locked(run) is True


class OutcomeFamilies:
    """How runs and ranks stand, with a sample for every outcome, and where runs are saved."""

    def __init__(self) -> None:
        self._runs = collected(RUN_OUTCOME)
        self._ranks = collected(RANK_OUTCOME)
        self._free, self._size = collected(DISK_FREE), collected(DISK_SIZE)
        self.all = [self._runs, self._ranks, self._free, self._size]

    def add_run(self, run: RunDirectory, outcome: RunOutcome | None, /, **labels: str) -> None:
        _add(self._runs, outcome, labels)
        texts = {name: as_text(value) for name, value in labels.items()}
        with contextlib.suppress(OSError):
            disk = os.statvfs(run.checkpoints if run.checkpoints.exists() else run.path)
            self._free.add_sample(DISK_FREE.name, texts, disk.f_bavail * disk.f_frsize)
            self._size.add_sample(DISK_SIZE.name, texts, disk.f_blocks * disk.f_frsize)

    def add_rank(self, rank: RankFile, outcome: RunOutcome, **labels: str) -> None:
        _add(self._ranks, outcome, labels | rank.labels)


def _add(family: Metric, outcome: RunOutcome | None, labels: Mapping[str, str]) -> None:
    texts = {name: as_text(value) for name, value in labels.items()}
    for state in RUN_OUTCOMES:
        family.add_sample(family.name, texts | {"outcome": state}, float(state == outcome))
