"""What the job under fire trains, and with which limits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

NUM_TRAIN, GLOBAL_BATCH_SIZE = 2_560, 256
_STEPS_PER_EPOCH = NUM_TRAIN // GLOBAL_BATCH_SIZE
_STEPS_BETWEEN_SAVES = 20
_EPOCHS = 100_000
"""A million steps: the run has no end of its own."""

SEED = 0
DISK_BYTES = 256 << 20
MAX_RESTARTS = 1000
"""Torchrun's."""

OPTIONS: Mapping[str, object] = {
    "global_batch_size": GLOBAL_BATCH_SIZE,
    "epochs": _EPOCHS,
    "schedule.warmup_ratio": 0.001,
    "seed": SEED,
    "log_every_steps": 1,
    "evaluation.every_epochs": 0,
    "checkpoint.every_epochs": _STEPS_BETWEEN_SAVES / _STEPS_PER_EPOCH,
    "distributed.timeout_seconds": 4,
    "distributed.save_timeout_seconds": 15,
    "metrics.publish_seconds": 0.5,
    "metrics.exporter_port": 0,
}
"""Of training, beside the data."""


def command(shards: Path) -> list[object]:
    """That of the run, whose directory is still missing."""
    words = (word for name, value in OPTIONS.items() for word in (f"--{name}", value))
    return ["cifar10", "--data.shards", shards, *words]
