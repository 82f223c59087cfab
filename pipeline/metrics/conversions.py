"""The metrics of the conversions of a root, from the files in `RUN_ROOT/conversions`."""

from __future__ import annotations

import contextlib
import stat
import time
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from data_prep.shard_set.conversion_metrics import CONVERSION_METRICS
from pipeline.config.timeouts import KEPT_SECONDS
from pipeline.metrics.node import merge

_MAX_BYTES = 1 << 20
"""A conversion writes thousands; whatever is larger is something else."""


class RootConversions(Collector):
    """What conversions have published that are at work, or ended less than three minutes ago.

    A file that is damaged, or no conversion's, is left out; so is what a link leads to.
    """

    def __init__(self, root: Path) -> None:
        self._folder = root / "conversions"

    def collect(self) -> list[Metric]:
        known = {metric.name.removesuffix("_total") for metric in CONVERSION_METRICS}
        expositions = []
        for path in sorted(self._folder.glob("*.prom")):
            # The parser slices lines that it takes for whole: hence IndexError.
            with contextlib.suppress(OSError, ValueError, IndexError):
                found = path.lstat()
                is_lately = time.time() - found.st_mtime <= KEPT_SECONDS
                if stat.S_ISREG(found.st_mode) and found.st_size <= _MAX_BYTES and is_lately:
                    families = text_string_to_metric_families(path.read_text())
                    expositions.append([family for family in families if family.name in known])
        return merge(expositions)
