"""Writes a registry to the run directory every few seconds, and never disturbs the training."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry

from data_prep.shard_set.families import Families, exposition
from data_prep.shard_set.files import remove_leftovers, write_atomically
from pipeline.metrics.declared import HEARTBEAT, PUBLISH_FAILURES
from pipeline.metrics.rank_file import Writer, rank_file_name, render_rank_file

CLOSE_SECONDS = 5.0
"""How long `Publisher.close` waits for a slow disk."""

_log = logging.getLogger(__name__)


class Publisher:
    """Publishes `registry` as the rank's file in `directory`: at once, then every few seconds.

    The work is done in a daemon thread. A disk that fails is logged once and counted, and the file
    returns when the disk does; a disk that hangs holds up nothing but `close`, and that for at most
    `CLOSE_SECONDS`. The last values are written by `close`.
    """

    def __init__(
        self,
        directory: Path,
        registry: CollectorRegistry,
        *,
        rank: int,
        local_rank: int,
        interval_seconds: float,
        refresh: Callable[[], object] = lambda: None,
    ) -> None:
        """`refresh` is called before each publication, in the thread."""
        self._path = directory / rank_file_name(rank)
        self._registry = registry
        self._refresh = refresh
        self._writer = Writer.this_process(
            rank=rank, local_rank=local_rank, interval_seconds=interval_seconds
        )
        families = Families(registry, rank=str(rank), local_rank=str(local_rank))
        self._heartbeat = families.gauge(HEARTBEAT)
        self._failures = families.counter(PUBLISH_FAILURES)
        self._has_logged = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics-publisher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Publish the last values and stop."""
        self._closing.set()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            _log.warning(
                "the last metrics may be missing from %s: the disk did not take them within %g s",
                self._path,
                CLOSE_SECONDS,
            )

    def _run(self) -> None:
        # Of a predecessor of this rank that was killed.
        self._try(lambda: remove_leftovers(self._path.parent, {self._path.name}))
        self._try(self._publish)
        while not self._closing.wait(self._writer.interval_seconds):
            self._try(self._publish)
        self._try(self._publish)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            self._failures.inc()
            if not self._has_logged:
                self._has_logged = True
                _log.warning(
                    "cannot write metrics to %s: %s; training goes on, and so do the attempts",
                    self._path,
                    error.strerror,
                )

    def _publish(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._refresh()
        self._heartbeat.set(time.time())
        content = render_rank_file(self._writer, exposition(self._registry))
        write_atomically(self._path, content, durable=False)
