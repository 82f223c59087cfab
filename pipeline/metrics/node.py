"""The rank files of one node, merged into one exposition."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from pipeline.metrics.outcomes import of_newest_attempt
from pipeline.metrics.rank_file import PATTERN, RankFile, Writer, read_rank_file, read_writer


class NodeCollector:
    """What the ranks of a run on `host` published last in `directory`, and which of them are up.

    A damaged file is left out and counted; the others are served all the same. A dead rank keeps
    its last values until ranks of a later attempt run here.
    """

    def __init__(self, directory: Path, host: str) -> None:
        self._directory = directory
        self._host = host
        self._num_damaged = 0
        self._lock = threading.Lock()

    def collect(self) -> list[Metric]:
        with self._lock:  # scrapes come in threads
            files = list(of_newest_attempt(self._read(), self._host, time.time()))
            damaged = CounterMetricFamily(
                "alexnet_exporter_damaged_files",
                "Times a damaged rank file was left out of a scrape",
                value=self._num_damaged,
            )
        return [*merge(file.families for file in files), _rank_up(files), damaged]

    def has_running_ranks(self) -> bool:
        """Whether a rank on this host is alive."""
        return any(writer.is_running for writer in self._writers())

    def last_start(self) -> float:
        """When the youngest rank on this host, alive or not, began to publish; 0 without ranks."""
        return max((writer.since for writer in self._writers()), default=0.0)

    def _writers(self) -> Iterator[Writer]:
        for path in self._directory.glob(PATTERN):
            with contextlib.suppress(OSError, ValueError):
                writer = read_writer(path)
                if writer.host == self._host:
                    yield writer

    def _read(self) -> list[RankFile]:
        files: list[RankFile] = []
        for path in sorted(self._directory.glob(PATTERN)):
            try:
                if read_writer(path).host == self._host:
                    files.append(read_rank_file(path))
            except (OSError, ValueError):
                self._num_damaged += 1
        return files


def _rank_up(files: list[RankFile]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "alexnet_rank_up",
        "1 while the rank's process runs and publishes",
        labels=("rank", "local_rank"),
    )
    now = time.time()
    for file in files:
        labels = (str(file.writer.rank), str(file.writer.local_rank))
        family.add_metric(labels, float(file.is_up(now)))
    return family


def merge(expositions: Iterable[Iterable[Metric]]) -> list[Metric]:
    """Each family once, with the samples of all `expositions`.

    A family whose type is not that of its namesake before it is left out.
    """
    merged: dict[str, Metric] = {}
    for exposition in expositions:
        for family in exposition:
            known = merged.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            if known.type == family.type:
                known.samples.extend(family.samples)
    return list(merged.values())
