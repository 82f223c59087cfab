"""How a run and its ranks stand, told from the run directory, and the metrics that say so.

    running    at work, or about to be
    completed  the run's last step is done
    stopped    left before that, as it was asked to
    failed     left with an error
    killed     gone without a last word

A job that is killed, alone or with its node, can publish nothing. So whoever sees the run directory
can tell: the node's exporter, and `python -m launch prometheus` on any host.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.registry import Collector

from data_prep.shard_set.files import as_text
from pipeline.metrics.rank_file import (
    PATTERN,
    RANK_OUTCOME,
    RankFile,
    read_rank_file,
)
from pipeline.run.directory import RunDirectory
from pipeline.run.ending import RUN_OUTCOMES, RunOutcome
from pipeline.run.event_log import last_of_training
from pipeline.run.events import EndEvent
from pipeline.run.lock import is_locked

RUN_OUTCOME = "alexnet_run_outcome"

KEPT_SECONDS = 180.0
"""How long the outcome of a run that has ended is served: several scrapes, and time for alerts."""

_LEAVING_SECONDS = 30.0
"""A run whose lock is held longer than that behind its `end` row has begun again."""

_LATELY_SECONDS = 3600.0
"""More than is kept: a run whose files are older, and that is not locked, has long ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """How a run stands; times are in Unix seconds."""

    outcome: RunOutcome
    ended: float | None
    """None while it is running; of a killed one, when that could be known at the latest."""
    ranks: tuple[RankFile, ...]
    """Of the newest attempt, on all hosts."""

    def is_over_for(self, seconds: float, now: float) -> bool:
        return self.ended is not None and now - self.ended > seconds


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
        if is_left and not _has_begun_again(ranks, last):
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


def _has_begun_again(ranks: Iterable[RankFile], end: EndEvent) -> bool:
    """Whether rank 0 publishes since the `end` row: it writes that itself, by the same clock."""
    return any(rank.writer.rank == 0 and rank.writer.since > end.time for rank in ranks)


class NodeOutcomes(Collector):
    """How the run's ranks on `host` stand and, if rank 0 is one of them, the run."""

    def __init__(self, run: RunDirectory, host: str) -> None:
        self._run = run
        self._host = host

    def collect(self) -> Iterator[Metric]:
        now = time.time()
        run_status = read_run_status(self._run, self._host, now)
        runs, ranks = _families()
        if run_status is not None:
            own = [rank for rank in run_status.ranks if rank.writer.host == self._host]
            for rank in own:
                _add(ranks, rank.outcome(self._host, now), **_labels_of(rank))
            if any(rank.writer.rank == 0 for rank in own):
                _add(runs, run_status.outcome)
        yield from (runs, ranks)


class RootOutcomes(Collector):
    """How the runs below `root` stand and their ranks: of those at work, or that ended lately.

    It needs no process of the runs, nor their hosts.
    """

    def __init__(self, root: Path, host: str) -> None:
        self._root = root
        self._host = host

    def collect(self) -> Iterator[Metric]:
        now = time.time()
        runs, ranks = _families()
        for run in map(RunDirectory, sorted(self._root.iterdir())):
            run_status = self._read_run_status(run, now)
            if run_status is None or run_status.is_over_for(KEPT_SECONDS, now):
                continue
            _add(runs, run_status.outcome, run=run.name)
            for rank in run_status.ranks:
                labels = {"run": run.name, "node": rank.writer.host} | _labels_of(rank)
                _add(ranks, rank.outcome(self._host, now), **labels)
        yield from (runs, ranks)

    def _read_run_status(self, run: RunDirectory, now: float) -> RunStatus | None:
        """None also for what is no run, or cannot be read, so that it does not hide others."""
        with contextlib.suppress(OSError):
            if run.path.is_dir() and _may_be_shown(run, now):
                return read_run_status(run, self._host, now)
        return None


def _may_be_shown(run: RunDirectory, now: float) -> bool:
    """A quick look, because there may be thousands of old runs."""
    times = []
    for path in (run.events, run.metrics):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times, default=0.0) > now - _LATELY_SECONDS or is_locked(run) is True


def _families() -> tuple[Metric, Metric]:
    return (
        Metric(RUN_OUTCOME, "1 for how the run stands, else 0", "gauge"),
        Metric(RANK_OUTCOME, "1 for how the rank stands, else 0", "gauge"),
    )


def _labels_of(rank: RankFile) -> dict[str, str]:
    return {"rank": str(rank.writer.rank), "local_rank": str(rank.writer.local_rank)}


def _add(family: Metric, outcome: RunOutcome, **labels: str) -> None:
    texts = {name: as_text(value) for name, value in labels.items()}
    for state in RUN_OUTCOMES:
        family.add_sample(family.name, texts | {"outcome": state}, float(state == outcome))
