"""The rank files of one node, merged into one exposition."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from pipeline.metrics.outcomes import of_newest_attempt
from pipeline.metrics.rank_file import PATTERN, RankFile, read_rank_file, read_writer


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
            now = time.time()
            files = list(of_newest_attempt(self._read(), self._host, now))
            damaged = CounterMetricFamily(
                "alexnet_exporter_damaged_files",
                "Times a damaged rank file was left out of a scrape",
                value=self._num_damaged,
            )
        is_up = GaugeMetricFamily(
            "alexnet_rank_up",
            "1 while the rank's process runs and publishes",
            labels=("rank", "local_rank"),
        )
        for file in files:
            labels = (str(file.writer.rank), str(file.writer.local_rank))
            is_up.add_metric(labels, float(file.is_up(now)))
        return [*merge(file.families for file in files), is_up, damaged]

    def has_running_ranks(self) -> bool:
        """Whether a rank on this host is alive."""
        for path in self._directory.glob(PATTERN):
            with contextlib.suppress(OSError, ValueError):
                writer = read_writer(path)
                if writer.host == self._host and writer.is_running:
                    return True
        return False

    def _read(self) -> list[RankFile]:
        files: list[RankFile] = []
        for path in sorted(self._directory.glob(PATTERN)):
            try:
                if read_writer(path).host == self._host:
                    files.append(read_rank_file(path))
            except (OSError, ValueError):
                self._num_damaged += 1
        return files


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
