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
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.registry import Collector

from data_prep.shard_set.files import as_text
from pipeline.metrics.rank_file import PATTERN, RANK_OUTCOME, RankFile, read_rank_file
from pipeline.run.directory import RunDirectory
from pipeline.run.ending import RUN_OUTCOMES, RunOutcome
from pipeline.run.event_log import last_of_training
from pipeline.run.events import EndEvent
from pipeline.run.lock import is_locked

RUN_OUTCOME = "alexnet_run_outcome"

KEPT_SECONDS = 180.0
"""How long the outcome of a run that has ended is served: several scrapes, and time for alerts."""

_LEAVING_SECONDS = 30.0
"""If the lock is still held this long after an `end` row, the run has begun again."""

_LATELY_SECONDS = 3600.0
"""A run without a lock whose files are older than this has ended long ago."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """How a run stands; times are in Unix seconds."""

    outcome: RunOutcome
    ended: float | None
    """None while it is running; of a killed one, the latest time at which it may have lived."""
    ranks: tuple[RankFile, ...]
    """Of the newest attempt, on all hosts."""


def read_run_status(run: RunDirectory, host: str, now: float) -> RunStatus | None:
    """How the run stands, as seen from `host`; None if it has never begun.

    The lock of the run directory and the ranks' files say whether it is at work: either is enough,
    because some file systems have no locks across hosts, and a run may publish no metrics.
    """
    ranks = tuple(of_newest_attempt(_read_ranks(run), host, now))
    last = last_of_training(run.events)
    has_lock = is_locked(run)
    if isinstance(last, EndEvent):
        is_left = not has_lock or now - last.time < _LEAVING_SECONDS
        # Rank 0 has written that row, by the clock by which it publishes.
        leaders = [rank.writer for rank in ranks if rank.writer.rank == 0]
        if is_left and not any(leader.since > last.time for leader in leaders):
            return RunStatus(outcome=last.outcome, ended=last.time, ranks=ranks)
    is_alive = has_lock or any(rank.outcome(host, now) == "running" for rank in ranks)
    if is_alive or (has_lock is None and not ranks):
        return RunStatus(outcome="running", ended=None, ranks=ranks)
    signs = [rank.heartbeat + rank.max_silence_seconds for rank in ranks]
    with contextlib.suppress(FileNotFoundError):
        signs.append(run.events.stat().st_mtime)
    return RunStatus(outcome="killed", ended=max(signs), ranks=ranks) if signs else None


def _read_ranks(run: RunDirectory) -> Iterator[RankFile]:
    for path in sorted(run.metrics.glob(PATTERN)):
        with contextlib.suppress(OSError, ValueError):
            yield read_rank_file(path)


def of_newest_attempt(files: Iterable[RankFile], host: str, now: float) -> Iterator[RankFile]:
    """Leave out ranks that were gone when the youngest began, as seen from `host`.

    A job restarted on fewer ranks does not overwrite the files of all its former ones.
    """
    files = list(files)
    begin = max((file.writer.since for file in files), default=0.0)
    for file in files:
        if file.heartbeat >= begin or file.outcome(host, now) == "running":
            yield file


class NodeOutcomes(Collector):
    """How the run's ranks on `host` stand and, if rank 0 is one of them, the run."""

    def __init__(self, run: RunDirectory, host: str) -> None:
        self._run = run
        self._host = host

    def collect(self) -> list[Metric]:
        now, families = time.time(), _Families()
        if run_status := read_run_status(self._run, self._host, now):
            for rank in run_status.ranks:
                if rank.writer.host == self._host:
                    families.add_rank(rank, rank.outcome(self._host, now))
                    if rank.writer.rank == 0:
                        families.add_run(run_status.outcome)
        return families.all


class RootOutcomes(Collector):
    """How the runs below `root` and their ranks stand: those at work, or that ended lately."""

    def __init__(self, root: Path, host: str) -> None:
        self._root = root
        self._host = host

    def collect(self) -> list[Metric]:
        now, families = time.time(), _Families()
        for run in map(RunDirectory, sorted(self._root.iterdir())):
            run_status = None
            with contextlib.suppress(OSError):  # else it would hide the others
                if run.path.is_dir() and _may_be_shown(run, now):
                    run_status = read_run_status(run, self._host, now)
            if run_status is None or now - (run_status.ended or now) > KEPT_SECONDS:
                continue
            families.add_run(run_status.outcome, run=run.name)
            for rank in run_status.ranks:
                outcome = rank.outcome(self._host, now)
                families.add_rank(rank, outcome, run=run.name, node=rank.writer.host)
        return families.all


def _may_be_shown(run: RunDirectory, now: float) -> bool:
    """A quick look, because there may be thousands of old runs."""
    times = []
    for path in (run.events, run.metrics):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times, default=0.0) > now - _LATELY_SECONDS or is_locked(run) is True


class _Families:
    """The two metrics, with a sample of each for every outcome."""

    def __init__(self) -> None:
        self._runs = Metric(RUN_OUTCOME, "1 for how the run stands, else 0", "gauge")
        self._ranks = Metric(RANK_OUTCOME, "1 for how the rank stands, else 0", "gauge")
        self.all = [self._runs, self._ranks]

    def add_run(self, outcome: RunOutcome, **labels: str) -> None:
        _add(self._runs, outcome, labels)

    def add_rank(self, rank: RankFile, outcome: RunOutcome, **labels: str) -> None:
        own = {"rank": str(rank.writer.rank), "local_rank": str(rank.writer.local_rank)}
        _add(self._ranks, outcome, labels | own)


def _add(family: Metric, outcome: RunOutcome, labels: Mapping[str, str]) -> None:
    texts = {name: as_text(value) for name, value in labels.items()}
    for state in RUN_OUTCOMES:
        family.add_sample(family.name, texts | {"outcome": state}, float(state == outcome))
