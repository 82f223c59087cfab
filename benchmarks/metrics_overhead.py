"""What metrics cost: step time with them on against off, and the CPU time they take, 2 ranks.

    python -m benchmarks.metrics_overhead [--rounds 7] [--json PATH]

Rounds alternate on and off on generated images, while a scrape every second, far more than
Prometheus does, reads the exporter; the ratio is of mean step times, round by round. Where the
machine is noisier than what is measured, the CPU time of the calls of a step and of a publication
says more: `cpu_share` is their part of a step's time, with everything else taken as free of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry

from benchmarks.measurement import parser, report, shard_synthetic, spread, train
from data_prep.shard_set.families import exposition
from data_prep.shard_set.files import write_atomically
from pipeline.config.schema import MetricsConfig
from pipeline.metrics.job import JobMetrics
from pipeline.metrics.rank import RankMetrics
from pipeline.metrics.rank_file import Writer, render_rank_file
from pipeline.run.event_log import of_type
from pipeline.run.events import TrainEvent
from pipeline.run.phase import PHASE_LABELS

STEPS, LOG_STEPS, REPEATS = 250, 50, 9


@contextlib.contextmanager
def scraping(targets: Path) -> Iterator[list[int]]:
    """Scrape whatever exporter announces itself in `targets`; yields the sizes of the answers."""
    done, sizes = threading.Event(), list[int]()

    def scrape() -> None:
        while not done.wait(1):
            for path in targets.glob("*.json"):
                with contextlib.suppress(OSError, ValueError):
                    ((address,),) = (row["targets"] for row in json.loads(path.read_bytes()))
                    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
                        sizes.append(len(answer.read()))

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield sizes
    finally:
        done.set()
        thread.join()


def step_seconds(shards: Path, run: Path, *, enabled: bool) -> float:
    """Mean time of a step after the first log interval."""
    never = ["--evaluation.every_epochs", 0, "--checkpoint.every_epochs", 0]
    steps = ["--log_every_steps", LOG_STEPS, "--max-steps", STEPS, "--epochs", 20]
    switch = [] if enabled else ["--metrics.enabled", False]
    options = [*never, *steps, *switch]
    exporter = True if enabled else None
    events = train(run, "cifar10", "--data.shards", shards, *options, exporter=exporter)
    for lock in (run / "metrics").glob("exporter-*.lock"):  # it would serve in the next round, too
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(lock.read_text().split()[-1]), signal.SIGTERM)
    seconds = [row.phase_seconds.values() for row in of_type(events, TrainEvent)[1:]]
    return statistics.fmean(sum(value or 0.0 for value in row) / LOG_STEPS for row in seconds)


def cpu_seconds(folder: Path) -> tuple[list[float], list[float]]:
    """CPU time of what a step records, and of a publication, several times each."""
    registry = CollectorRegistry()
    rank, _ = RankMetrics(0, 0, registry), JobMetrics(registry)
    phases = dict.fromkeys(PHASE_LABELS, 0.01)

    def record() -> None:
        rank.record_loaded(
            "tar",
            num_samples=128,
            num_bytes=400_000,
            read_seconds=0.001,
            decode_seconds=0.002,
            num_replaced=0,
        )
        rank.record_queue(4)
        rank.record_step(128, phases)

    writer = Writer.this_process(rank=0, local_rank=0, interval_seconds=2)

    def publish() -> None:
        content = render_rank_file(writer, exposition(registry))
        write_atomically(folder / "rank.prom", content, durable=False)

    return _cpu_seconds_of(record, 2000), _cpu_seconds_of(publish, 50)


def _cpu_seconds_of(action: Callable[[], None], calls: int) -> list[float]:
    seconds = []
    for _ in range(REPEATS):
        begin = time.process_time()
        for _ in range(calls):
            action()
        seconds.append((time.process_time() - begin) / calls)
    return seconds


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--rounds", type=int, default=7)
    options = options_parser.parse_args()
    on: list[float] = []
    off: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        shards = shard_synthetic(root / "shards", num_train=4096, num_val=256)
        with scraping(root / "prometheus-targets") as sizes:
            for number in range(options.rounds):
                on.append(step_seconds(shards, root / f"on-{number}", enabled=True))
                off.append(step_seconds(shards, root / f"off-{number}", enabled=False))
        record, publish = cpu_seconds(root)
    step = statistics.median(off)
    publish_seconds = MetricsConfig().publish_seconds
    shares = [r / step + p / publish_seconds for r, p in zip(record, publish, strict=True)]
    figures = {
        "claim": "metrics cost below 1 % of step time",
        "step_seconds": {"metrics on": spread(on, 5), "metrics off": spread(off, 5)},
        "ratio": spread([a / b for a, b in zip(on, off, strict=True)]),
        "cpu_seconds": {"recording a step": spread(record, 7), "publishing": spread(publish, 5)},
        "cpu_share": spread(shares, 5),
        "scrapes": {"num": len(sizes), "bytes": max(sizes, default=0)},
    }
    report(figures, options.json)


if __name__ == "__main__":
    main()
