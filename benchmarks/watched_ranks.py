"""`pipeline.train` that is watched in every other log interval only, for `benchmarks.watching`.

    torchrun … -m benchmarks.watched_ranks FOLDER ARGUMENTS…

Each rank leaves the seconds of its intervals, of CPU and wall, in FOLDER/RANK.json.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from pipeline.metrics.job import JobMetrics
from pipeline.metrics.publisher import Publisher
from pipeline.metrics.rank import RankMetrics
from pipeline.ranks.failure import leave
from pipeline.run.phase import Label
from pipeline.train import __main__ as train
from pipeline.train.log_interval import StepLog
from pipeline.train.rank_sums import RankTimes
from pipeline.train.replicas import ReplicaCheck
from pipeline.train.stragglers import Stragglers

METRICS: Mapping[type[Any], tuple[str, ...]] = {
    RankMetrics: ("record_step", "record_loaded", "record_queue", "record_straggler"),
    JobMetrics: ("count_step", "trained", "record_delay", "compared_replicas"),
    Publisher: ("_publish",),
}
_is_on = True


def switch(owner: type[Any], name: str, off: Callable[..., Any] = lambda *_, **__: None) -> None:
    """Let the method be `off` in intervals that are not watched."""
    plain = getattr(owner, name)

    def method(*arguments: Any, **options: Any) -> Any:
        return (plain if _is_on else off)(*arguments, **options)

    setattr(owner, name, method)


def add_phases(times: RankTimes, phase_seconds: Mapping[Label, float]) -> None:
    """What a `train` event needs."""
    for label, seconds in phase_seconds.items():
        times.phase_seconds[label] += seconds
    times.num_steps += 1


def measure(path: Path) -> None:
    """Switch behind each log interval, and note what it took."""
    plain, found = StepLog.end_interval, list[tuple[bool, float, float]]()
    begin = time.process_time(), time.perf_counter()

    def end_interval(log: StepLog, learning_rate: float) -> None:
        nonlocal begin
        global _is_on
        plain(log, learning_rate)
        now = time.process_time(), time.perf_counter()
        found.append((_is_on, now[0] - begin[0], now[1] - begin[1]))
        path.write_text(json.dumps(found))
        begin, _is_on = (time.process_time(), time.perf_counter()), not _is_on

    mock.patch.object(StepLog, "end_interval", end_interval).start()


def main() -> int:
    folder, *words = sys.argv[1:]
    for owner, names in METRICS.items():
        for name in names:
            switch(owner, name)
    switch(RankTimes, "add", add_phases)
    switch(Stragglers, "look")
    switch(ReplicaCheck, "fingerprint", lambda _: torch.zeros((), dtype=torch.int64))
    switch(ReplicaCheck, "check")
    measure(Path(folder, f"{os.environ['RANK']}.json"))
    return train.main(words)


if __name__ == "__main__":
    leave(main())
