"""What Prometheus sees of a conversion: one file, for `launch prometheus` or node_exporter."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_prep.convert.assignment import Task
from data_prep.convert.output import ConversionError
from data_prep.shard_set import conversion_metrics as declared
from data_prep.shard_set.conversion_metrics import Stage, StageClock
from data_prep.shard_set.families import Families, exposition
from data_prep.shard_set.files import as_text, describe, remove_leftovers, write_atomically
from data_prep.shard_set.rejection import RejectReason

_PUBLISH_SECONDS = 2.0

_log = logging.getLogger(__name__)

Done = Counter[RejectReason | None]
"""Samples by why they were rejected; None: they were not."""


class ConversionMetrics:
    """The metrics of this call. A disk that fails later costs a warning, and no conversion."""

    def __init__(self, path: Path | None, shards: Path, task: Task | None) -> None:
        """`path` is the file to write, or None."""
        registry, number = None, "" if task is None else str(task.number)
        if path is not None:
            from prometheus_client import CollectorRegistry

            registry = CollectorRegistry()
        families = Families(registry, conversion=as_text(shards.name), task=number)
        self._samples = families.counter(declared.SAMPLES)
        self._bytes = families.counter(declared.BYTES_WRITTEN)
        self._rejected = families.counters(declared.REJECTED)
        self._seconds = families.counters(declared.SECONDS)
        self._expected = families.gauge(declared.EXPECTED)
        self._last_progress = families.gauge(declared.LAST_PROGRESS)
        self._last_progress.set(time.time())
        self._registry = registry
        self._path = path
        # Two folders may have the same name: the file says whose it is.
        self._header = f"# {json.dumps({'shards': str(shards)})}\n".encode()
        self._done: Done = Counter()
        self._published = 0.0
        self._has_warned = False

    def begin(self, num_samples: int) -> None:
        """This call has so many samples to convert."""
        self._expected.set(num_samples)
        self.publish_or_warn()

    def show(self, done: Done) -> None:
        """So many samples are done; publishes now and then."""
        if new := done - self._done:
            self._samples.inc(new.total())
            for reason, count in new.items():
                if reason is not None:
                    self._rejected[reason].inc(count)
            self._done = done.copy()
            self._last_progress.set(time.time())
        if time.monotonic() - self._published >= _PUBLISH_SECONDS:
            self.publish_or_warn()

    def add_shard(self, num_bytes: int, seconds: Mapping[Stage, float]) -> None:
        """A shard is finished, which took a worker so long."""
        self._bytes.inc(num_bytes)
        self._add(seconds)

    @contextlib.contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """What this process itself does in the block."""
        clock = StageClock()
        clock.enter(stage)
        try:
            yield
        finally:
            clock.enter(None)
            self._add(clock.seconds)

    def _add(self, seconds: Mapping[Stage, float]) -> None:
        for stage, spent in seconds.items():
            self._seconds[stage].inc(spent)

    def publish(self) -> None:
        """Raises `OSError`, and `ConversionError` if the file is of another conversion."""
        if self._path is None or self._registry is None:
            return
        self._published = time.monotonic()
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            if (first := file.readline(10_000)) != self._header:
                raise ConversionError(
                    f"{self._path} is not of this conversion, but begins with {first[:300]!r}: "
                    "give another --metrics-dir, or delete the file if that conversion has ended"
                )
        write_atomically(self._path, self._header + exposition(self._registry), durable=False)

    def publish_or_warn(self) -> None:
        """The same, but a failure is logged once."""
        try:
            self.publish()
        except (OSError, ConversionError) as error:
            if not self._has_warned:
                _log.warning("cannot write metrics: %s; the conversion goes on", describe(error))
            self._has_warned = True


@contextlib.contextmanager
def publishing(
    directory: Path | None, shards: Path, task: Task | None
) -> Iterator[ConversionMetrics]:
    """Metrics that are published every 2 seconds of the block, and at its end.

    Without a `directory` they go nowhere. Raises as `ConversionMetrics.publish` if it cannot begin.
    """
    shards, path = shards.resolve(), None
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        part = "" if task is None else f"-{task.number}"
        path = directory / f"convert-{shards.name}{part}.prom"
        remove_leftovers(directory, {path.name})
    metrics = ConversionMetrics(path, shards, task)
    metrics.publish()
    try:
        yield metrics
    finally:
        metrics.publish_or_warn()
