"""The ledgers of runs as metrics; each scrape reads on from where the one before had stopped."""

from __future__ import annotations

import contextlib
import threading

from data_prep.shard_set.families import collected
from data_prep.shard_set.files import as_text
from pipeline.metrics.declared import (
    GOODPUT,
    LEDGER_METRICS,
    RUN_ATTEMPTS,
    RUN_PREEMPTIONS,
    RUN_SECONDS,
)
from pipeline.run.directory import RunDirectory
from pipeline.run.ending import RunOutcome
from pipeline.run.event_tail import EventTail
from pipeline.run.ledger import Ledger, LedgerBuilder


class RunLedger:
    """The ledger of one run that others append to; scrapes may come in threads."""

    def __init__(self, run: RunDirectory) -> None:
        self._tail = EventTail(run.events)
        self._builder = LedgerBuilder()
        self._num_restarts = 0
        self._is_newer = False
        self._lock = threading.Lock()

    def at(self, now: float, outcome: RunOutcome | None) -> Ledger | None:
        """The ledger of a run that stands so; None without events, or if they cannot be read."""
        with self._lock:
            with contextlib.suppress(OSError):
                try:
                    rows = self._tail.new_rows()
                except ValueError:  # of a newer version: to count only some rows would mislead
                    self._is_newer, rows = True, []
                if self._tail.num_restarts != self._num_restarts:
                    self._builder, self._num_restarts = LedgerBuilder(), self._tail.num_restarts
                for row in rows:
                    self._builder.add(row)
            if self._is_newer:
                return None
            return self._builder.ledger(now, is_at_work=outcome == "running")


class LedgerFamilies:
    """The metrics of the ledger, with samples for each run."""

    def __init__(self) -> None:
        self.all = [collected(metric) for metric in LEDGER_METRICS]

    def add(self, ledger: Ledger | None, **labels: str) -> None:
        if ledger is None:
            return
        seconds, goodput, attempts, preemptions = self.all
        texts = {name: as_text(value) for name, value in labels.items()}
        for name, value in ledger.seconds.items():
            seconds.add_sample(RUN_SECONDS.name, {**texts, "class": name}, value)
        goodput.add_sample(GOODPUT.name, texts, ledger.goodput)
        attempts.add_sample(RUN_ATTEMPTS.name, texts, ledger.num_attempts)
        preemptions.add_sample(RUN_PREEMPTIONS.name, texts, ledger.num_preemptions)
