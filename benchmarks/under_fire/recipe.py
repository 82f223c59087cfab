"""What the job under fire trains, and with which limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.train.command import parse_command

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
    "distributed.warm_restarts": 1000,
    "metrics.publish_seconds": 0.5,
    "metrics.exporter_port": 0,
}
"""Of training, beside the data."""


def options_of(words: Sequence[str]) -> dict[str, object]:
    """With what the user gives in addition, such as `--distributed.warm_restarts 0`.

    Raises `ValueError` if that is no pairs of an option and its value.
    """
    names, values = words[::2], words[1::2]
    if len(names) != len(values) or not all(name.startswith("--") for name in names):
        raise ValueError(
            f"options of training are '{' '.join(words)}'; expected pairs of an option and a value"
        )
    given = zip((name.removeprefix("--") for name in names), values, strict=True)
    return {**OPTIONS, **dict(given)}


def command(shards: Path, run: Path, options: Mapping[str, object]) -> list[str]:
    """Raises `ValueError` if it is none of `pipeline.train`."""
    words = (word for name, value in options.items() for word in (f"--{name}", value))
    made = list(map(str, ["cifar10", "--data.shards", shards, "--run-dir", run, *words]))
    parse_command(made)
    return made
