"""The rank files of one node, merged into one exposition."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator

from prometheus_client import Metric
from prometheus_client.registry import Collector

from data_prep.shard_set.families import collected
from pipeline.metrics.declared import DAMAGED_FILES, RANK_UP
from pipeline.metrics.ledgers import LedgerFamilies, RunLedger
from pipeline.metrics.outcomes import OutcomeFamilies, read_run_status
from pipeline.metrics.rank_file import PATTERN, Writer, read_writer
from pipeline.run.directory import RunDirectory


class NodeCollector(Collector):
    """What the run's ranks on `host` published last, which of them are up, and how they stand.

    If rank 0 is one of them, how the run stands, too. A damaged file is left out and counted; the
    others are served all the same. A dead rank keeps its last values until a later attempt begins.
    """

    def __init__(self, run: RunDirectory, host: str) -> None:
        self._run = run
        self._host = host
        self._ledger = RunLedger(run)
        self._num_damaged = 0
        self._lock = threading.Lock()

    def collect(self) -> list[Metric]:
        now, outcomes, ledgers = time.time(), OutcomeFamilies(), LedgerFamilies()
        is_up, damaged = collected(RANK_UP), collected(DAMAGED_FILES)
        run_status = read_run_status(self._run, self._host, now)
        own = [rank for rank in run_status.ranks if rank.writer.host == self._host]
        for rank in own:
            is_up.add_sample(RANK_UP.name, rank.labels, float(rank.is_up(now)))
            outcomes.add_rank(rank, rank.outcome(self._host, now))
            if rank.writer.rank == 0:
                outcomes.add_run(self._run, run_status.outcome)
                ledgers.add(self._ledger.at(now, run_status.outcome))
        with self._lock:  # scrapes come in threads
            self._num_damaged += run_status.num_damaged
            damaged.add_sample(DAMAGED_FILES.name, {}, self._num_damaged)
        ranks = merge(rank.families for rank in own)
        return [*ranks, is_up, damaged, *outcomes.all, *ledgers.all]

    def has_running_ranks(self) -> bool:
        """Whether a rank on this host is alive."""
        return any(writer.is_running for writer in self._writers())

    def last_start(self) -> float:
        """When the youngest rank on this host, alive or not, began to publish; 0 without ranks."""
        return max((writer.since for writer in self._writers()), default=0.0)

    def _writers(self) -> Iterator[Writer]:
        for path in self._run.metrics.glob(PATTERN):
            with contextlib.suppress(OSError, ValueError):
                if (writer := read_writer(path)).host == self._host:
                    yield writer


def merge(expositions: Iterable[Iterable[Metric]]) -> list[Metric]:
    """Each family once, with the samples of all `expositions` that agree on its type."""
    merged: dict[str, Metric] = {}
    for exposition in expositions:
        for family in exposition:
            known = merged.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            if known.type == family.type:
                known.samples.extend(family.samples)
    return list(merged.values())
