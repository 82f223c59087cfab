"""A rank for tests of the monitoring: publishes real metrics until its standard input ends.

Rank 0 has the run's lock and writes its events, too: as soon as it has published, the run has
begun.

    python -m tests.pipeline.rank_process RUN RANK INTERVAL_SECONDS

It "trains" 1,000 samples a second; a quarter of each step's time is waiting for data.
"""

from __future__ import annotations

import select
import sys
import threading
import time
from pathlib import Path

from prometheus_client import CollectorRegistry

from pipeline.metrics import publisher as publisher_module
from pipeline.metrics.job import JobMetrics
from pipeline.metrics.publisher import Publisher
from pipeline.metrics.rank import RankMetrics
from pipeline.run.directory import RunDirectory
from pipeline.run.lock import lock_run
from tests.machine import DEADLINE_SECONDS
from tests.pipeline.fake_run import RunHistory, eval_fields, event, start_fields, train_fields

SAMPLES_PER_SECOND = 1000
DATA_WAIT_RATIO = 0.25
LOSS = 1.5
TOP1 = 0.625
EVAL_TOP1 = 0.75
STARTED = event("run", 0, **start_fields() | {"steps_per_epoch": 100})
BUILD = {"version": "0.1.0", "torch": "2.13.0", "cuda": ""}
RUN = {
    "recipe": "cifar10",
    "model": "alexnet_cifar",
    "columns": "fused",
    "precision": "fp32",
    "dataset": 'a "quoted" \\ name',
    "manifest_sha8": "01234567",
    "git_revision": "0123456",
    "gpu_name": "",
}


def train(rank: RankMetrics, job: JobMetrics | None) -> None:
    """One step after another, a fiftieth of a second long, until standard input ends."""
    begin = last = time.monotonic()
    num_samples = step = 0
    while not select.select([sys.stdin], [], [], 0.02)[0]:
        now = time.monotonic()
        due = int((now - begin) * SAMPLES_PER_SECOND)
        waited = (now - last) * DATA_WAIT_RATIO
        rank.record_step(
            due - num_samples, {"data_wait": waited, "forward_backward": now - last - waited}
        )
        num_samples, last, step = due, now, step + 1
        if job is not None:
            job.count_step(step, step / 100)
            job.trained(event("train", step, **train_fields(step) | {"loss": LOSS, "top1": TOP1}))


def main() -> None:
    run, rank = RunDirectory(Path(sys.argv[1])), int(sys.argv[2])
    interval_seconds = float(sys.argv[3])
    publisher_module.CLOSE_SECONDS = DEADLINE_SECONDS  # its last word is to be there
    registry, has_begun = CollectorRegistry(), threading.Event()
    metrics = RankMetrics(rank, rank, registry)
    job = history = None
    if rank == 0:
        lock_run(run, None, wait_seconds=5)
        job = JobMetrics(registry)
        job.started(STARTED, 10, BUILD, RUN)
        job.evaluated(event("eval", 0, **eval_fields(9, 10, 10, 10) | {"top1": EVAL_TOP1}))
    publisher = Publisher(
        run.metrics,
        registry,
        rank=rank,
        local_rank=rank,
        interval_seconds=interval_seconds,
        refresh=has_begun.wait,
    )
    if rank == 0:
        history = RunHistory(run)
        history.write("run", 0, **start_fields())
    has_begun.set()
    train(metrics, job)
    metrics.record_outcome("completed")
    if job is not None and history is not None:
        job.ended()
        history.write("end", 100, outcome="completed")
    publisher.close()


if __name__ == "__main__":
    main()
