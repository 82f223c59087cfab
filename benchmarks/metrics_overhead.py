"""What metrics cost: step time with them on against off, 2 ranks, exporter running.

    python -m benchmarks.metrics_overhead [--rounds 7] [--json PATH]

Rounds alternate on and off on generated images. The figure is the ratio of mean step times, round
by round; a scrape every second, far more than Prometheus does, reads the exporter meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measurement import parser, report, shard_synthetic, spread, train

STEPS, LOG_STEPS = 250, 50


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
    switch = ["--metrics.enabled", enabled, "--metrics.exporter_linger_seconds", 0]
    events = train(run, "cifar10", "--data.shards", shards, *never, *steps, *switch, exporter=True)
    rows = [event for event in events if event["kind"] == "train"][1:]
    return statistics.fmean(sum(row["phase_seconds"].values()) / LOG_STEPS for row in rows)


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--rounds", type=int, default=7)
    options = options_parser.parse_args()
    on, off = [], []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        shards = shard_synthetic(root / "shards", num_train=4096, num_val=256)
        with scraping(root / "prometheus-targets") as sizes:
            for number in range(options.rounds):
                on.append(step_seconds(shards, root / f"on-{number}", enabled=True))
                off.append(step_seconds(shards, root / f"off-{number}", enabled=False))
    figures = {
        "claim": "metrics cost below 1 % of step time",
        "step_seconds": {"metrics on": spread(on, 5), "metrics off": spread(off, 5)},
        "ratio": spread([a / b for a, b in zip(on, off, strict=True)]),
        "scrapes": {"num": len(sizes), "bytes": max(sizes, default=0)},
    }
    report(figures, options.json)


if __name__ == "__main__":
    main()
