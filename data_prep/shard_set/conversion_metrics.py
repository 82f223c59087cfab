"""The metrics of a conversion, declared where their writer and their readers meet."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal, get_args

from data_prep.shard_set.metric import Kind, Metric, Summed
from data_prep.shard_set.rejection import RejectReason

Stage = Literal["unpack", "read", "convert", "write", "publish"]
"""What a conversion spends its time on; several processes read, convert and write at once."""

STAGES: tuple[Stage, ...] = get_args(Stage)
REJECT_REASONS: tuple[RejectReason, ...] = get_args(RejectReason)


class StageClock:
    """How long a process was in each stage, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[Stage, float] = {}
        self._stage: Stage | None = None
        self._since = 0.0

    def enter(self, stage: Stage | None) -> None:
        """The stage before ends; None begins no other."""
        now = time.perf_counter()
        if self._stage is not None:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._since
        self._stage, self._since = stage, now


def _metric(
    kind: Kind, name: str, meaning: str, use: str, /, **labels: Sequence[str] | None
) -> Metric:
    summed: Summed = "max over tasks" if "timestamp" in name else "sum over tasks"
    return Metric(
        name=f"alexnet_convert_{name}",
        kind=kind,
        help=meaning,
        use=use,
        origin="conversion",
        summed=summed,
        labels={"conversion": None, "task": None, **labels},
    )


SAMPLES = _metric(
    "counter", "samples_total", "Samples read, converted or rejected", "progress; samples a second"
)
BYTES_WRITTEN = _metric(
    "counter", "bytes_written_total", "Bytes of the finished shards", "load of the disk"
)
REJECTED = _metric(
    "counter",
    "rejected_total",
    "Samples left out, by reason",
    "damaged raw data, before the share is too large",
    reason=REJECT_REASONS,
)
SECONDS = _metric(
    "counter",
    "seconds_total",
    "Time of all processes, by stage; workers count with each finished shard",
    "whether reading, converting or writing is the limit",
    stage=STAGES,
)
EXPECTED = _metric(
    "gauge",
    "expected_samples",
    "Samples that this call has to convert: those of shards that are not finished",
    "time left",
)
LAST_PROGRESS = _metric(
    "gauge",
    "last_progress_timestamp_seconds",
    "When a sample was last done",
    "conversions that stand still",
)

CONVERSION_METRICS = (SAMPLES, BYTES_WRITTEN, REJECTED, SECONDS, EXPECTED, LAST_PROGRESS)
