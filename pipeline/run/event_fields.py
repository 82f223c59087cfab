"""The rows of `RUN/events.jsonl`: which kinds there are and which fields each has, declared once.

The writer refuses any other row, the reader leaves it out and says why, and the table in
`docs/operations.md` is held to it by a test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from pipeline.run.ending import EndOutcome, FailureCause

Kind = Literal["run", "train", "eval", "checkpoint", "alarm", "signal", "end"]
AlarmReason = Literal["not_learning", "damaged_image"]
EvaluatedBy = Literal["train", "evaluate"]
"""The command that made an evaluation: `pipeline.train` at a step of its own, or
`pipeline.evaluate` of a checkpoint, at any time."""

EVERY_ROW: Mapping[str, str] = {
    "kind": "which of these rows it is",
    "step": "optimizer updates done; of `pipeline.evaluate`, those of the checkpoint",
    "epoch": "`step / steps_per_epoch`, a float",
    "time": "when it was written, Unix seconds",
}

FIELDS: Mapping[Kind, Mapping[str, str]] = {
    "run": {
        "format_version": "of the rows from here on: 1",
        "resumed_from": "step that the process group goes on from, or null",
        "forked_from": "checkpoint of another run that it begins at, or null",
        "world_size": "number of ranks",
        "local_batch_size": "images of a micro-batch of a replica",
        "accumulation_steps": "micro-batches of a step",
        "global_batch_size": "images of a step, of all replicas",
        "steps_per_epoch": "steps of an epoch",
        "target_steps": "steps of the whole run",
        "device": "`cpu` or `cuda`",
        "precision": "of the passes",
        "num_train_samples": "images of the train split",
        "num_val_samples": "images of the val split",
        "shard_set": "title of the shard set",
    },
    "train": {
        "loss": "mean over the log interval",
        "top1": "share of right answers, in training mode",
        "learning_rate": "of the weights, at the last step",
        "images_per_second": "of all ranks, waiting included",
        "data_wait_ratio": "share of the time that ranks waited for data",
        "phase_seconds": "seconds of each phase, of rank 0",
        "skipped_steps": "steps so far whose gradients were not finite",
        "grad_norm": "of the last step, or null",
    },
    "eval": {
        "by": "the command: `train` or `evaluate`",
        "split": "`val` or another split",
        "views": "of each image: 1, or the 10 of 2012",
        "shard_set": "title of the shard set",
        "manifest_sha256": "hash of its manifest",
        "own_shards": "whether it is the one that the run trains on",
        "top1": "share of right answers",
        "top5": "share with the right answer among five; null with five classes or fewer",
        "loss": "mean cross-entropy",
        "correct1": "number of right answers",
        "correct5": "as `top5`, or null",
        "seen": "images counted",
        "expected": "images of the split",
        "seconds": "that it took",
    },
    "checkpoint": {
        "path": "of the checkpoint",
        "num_bytes": "its size",
        "seconds": "that saving took",
        "reason": "`periodic`, `best` or `preempt`",
    },
    "alarm": {"reason": "what is wrong: see below"},
    "signal": {"source": "who asked for a stop: a signal, `STOP file` or `end of torchrun`"},
    "end": {
        "outcome": "`completed`, `stopped` or `failed`",
        "error": "of a failed process group alone: why",
        "cause": "`lost_rank` where it failed because another rank was gone",
    },
}

ALARM_FIELDS: Mapping[AlarmReason, Mapping[str, str]] = {
    "not_learning": {"loss": "that of guessing"},
    "damaged_image": {
        "rank": "that met it",
        "sample": "its number in the train split",
        "shard": "the file it is in",
        "what": "what is wrong with it",
    },
}

_NUMBERS = frozenset(
    {
        *("step", "epoch", "time", "resumed_from", "world_size", "local_batch_size"),
        *("accumulation_steps", "global_batch_size", "steps_per_epoch", "target_steps"),
        *("num_train_samples", "num_val_samples", "loss", "top1", "top5", "learning_rate"),
        *("images_per_second", "data_wait_ratio", "skipped_steps", "grad_norm", "views"),
        *("correct1", "correct5", "seen", "expected", "seconds", "num_bytes", "rank", "sample"),
    }
)
_NUMBERS_OR_NULL = frozenset(
    {"resumed_from", "loss", "top5", "grad_norm", "views", "correct5", "sample"}
)
"""A loss that is not finite is null, too."""

_TEXTS = frozenset({"source", "error"})
"""With `outcome` and `phase_seconds`, these are all that readers compute with or compare."""

_NEED_NOT_BE: Mapping[str, frozenset[str]] = {"end": frozenset({"error", "cause"})}

_OF_OLDER_VERSIONS: Mapping[str, Mapping[str, Any]] = {
    "run": {"format_version": 1, "forked_from": None, "shard_set": None},
    "eval": {
        "by": "train",
        "views": None,
        "shard_set": None,
        "manifest_sha256": None,
        "own_shards": True,
    },
    "damaged_image": {"rank": 0, "sample": None, "shard": None},
}
"""By kind or reason, what stands for a field that rows had not before it was declared."""


def check_row(row: Mapping[str, Any]) -> None:
    """Raise `ValueError` if the row has not exactly the fields that are declared."""
    expected = _declared(row)
    optional = _NEED_NOT_BE.get(row["kind"], frozenset())
    if lacking := expected - optional - row.keys():
        raise ValueError(_describe_missing(row, lacking))
    if extra := row.keys() - expected:
        raise ValueError(f"{_name(row)} has no field {', '.join(sorted(extra))}")


def completed_row(row: object) -> dict[str, Any]:
    """The row as it is now declared: one of an older version gets what it lacks.

    Fields that a newer version may have added stay. Raises `ValueError` if it is no event.
    """
    if not isinstance(row, dict):
        raise ValueError(f"it is {row!r:.40}, expected an object")
    if lacking := EVERY_ROW.keys() - row.keys():
        raise ValueError(f"it has no {', '.join(sorted(lacking))}")
    expected = _declared(row)
    older = {
        name: value
        for key in (row["kind"], row.get("reason"))
        for name, value in _OF_OLDER_VERSIONS.get(str(key), {}).items()
    }
    complete: dict[str, Any] = older | row
    if lacking := expected - _NEED_NOT_BE.get(row["kind"], frozenset()) - complete.keys():
        raise ValueError(_describe_missing(row, lacking))
    for name in sorted(expected & complete.keys()):
        if (wanted := _wanted(name, complete[name])) is not None:
            raise ValueError(f"{name} of {_name(row)} is {complete[name]!r:.40}, expected {wanted}")
    return complete


def _wanted(name: str, value: object) -> str | None:
    """What a field must hold if readers cannot do with the `value` that it has, else None."""
    if name in _NUMBERS:
        is_null = value is None and name in _NUMBERS_OR_NULL
        return None if is_null or _is_number(value) else "a number"
    if name in _TEXTS:
        return None if isinstance(value, str) else "a text"
    if name == "outcome":
        return None if value in get_args(EndOutcome) else ", ".join(get_args(EndOutcome))
    if name == "cause":
        return None if value in get_args(FailureCause) else ", ".join(get_args(FailureCause))
    if name == "phase_seconds":
        is_right = isinstance(value, dict) and all(
            seconds is None or _is_number(seconds) for seconds in value.values()
        )
        return None if is_right else "an object of numbers"
    return None


def _is_number(value: object) -> bool:
    """JSON has no other; Python reads NaN and infinities from it, too."""
    return isinstance(value, int | float) and -math.inf < value < math.inf


def _declared(row: Mapping[str, Any]) -> set[str]:
    """The names of the fields of such a row; raises `ValueError` if there are no such rows."""
    kind = row["kind"]
    if kind not in get_args(Kind):
        raise ValueError(f"its kind is {kind!r}, expected {', '.join(get_args(Kind))}")
    names = {*EVERY_ROW, *FIELDS[kind]}
    if kind != "alarm":
        return names
    reason: Any = row.get("reason")
    if reason not in get_args(AlarmReason):
        raise ValueError(
            f"the reason of an alarm is {reason!r}, expected {', '.join(get_args(AlarmReason))}"
        )
    return names | {*ALARM_FIELDS[reason]}


def _name(row: Mapping[str, Any]) -> str:
    return f"an alarm of {row['reason']}" if row["kind"] == "alarm" else f"a '{row['kind']}' row"


def _describe_missing(row: Mapping[str, Any], lacking: set[str]) -> str:
    return f"{_name(row)} lacks {', '.join(sorted(lacking))}"
