"""What happens in a run: one type for each kind of row of `RUN/events.jsonl`.

Rows are written from these types and read into them, so the type checker finds a field that a
reader expects and no writer gives. A row has the fields of its type in their order. A test compares
their descriptions with the table in `docs/operations.md`.
Longer than 250 lines: all kinds are here.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, get_args

from data_prep.shard_set.fields import at_least
from pipeline.run.ending import EndOutcome, FailureCause
from pipeline.run.format_version import EVENTS_VERSION
from pipeline.run.phase import Label

AlarmReason = Literal["not_learning", "damaged_image", "straggler", "replicas_differ"]
SlowPart = Literal["rank", "loader", "unattributed"]
"""Who holds up the others: one rank; the loader, as the delay wanders from rank to rank; or it is
not known."""

SubmittedTo = Literal["local", "slurm", "kubernetes"]
CheckpointReason = Literal["periodic", "best", "preempt"]
EvaluatedBy = Literal["train", "evaluate"]
"""The command that made an evaluation: `pipeline.train` at a step of its own, or
`pipeline.evaluate` of a checkpoint, at any time."""


@dataclass(frozen=True, slots=True)
class Before:
    """Marks a field that older versions did not write, with its value for their rows."""

    value: object


MAY_BE_NAN = "may be NaN"
"""Marks a number that may be not finite; JSON cannot say that, so the row has null."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What every row has. A field with the default None is left out of the row where it is None."""

    kind: ClassVar[str]
    step: Annotated[
        int, "steps done; after an evaluation by `pipeline.evaluate`, those of the checkpoint"
    ]
    epoch: Annotated[float, "`step / steps_per_epoch`, a float"]
    time: Annotated[float, "when it was written, Unix seconds"] = dataclasses.field(
        default_factory=lambda: time.time()  # looked up now: tests have another clock
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SubmitEvent(Row):
    """`launch` has started a job, or submitted one that may wait. No part of the training."""

    kind: ClassVar[str] = "submit"
    to: Annotated[SubmittedTo, "`local`, `slurm` or `kubernetes`"]
    job: Annotated[str | None, "its number or name there, or null"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StartEvent(Row):
    """The ranks of a process group are there, and there is something to do."""

    kind: ClassVar[str] = "start"
    began: Annotated[float, "when the job, or torchrun's restart of its ranks, began, Unix seconds"]
    heard: Annotated[
        float | None, "when a rank of the process group before was last heard of, or null"
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEvent(Row):
    """A process group begins."""

    kind: ClassVar[str] = "run"
    resumed_from: Annotated[int | None, "step that the process group resumes from, or null"]
    forked_from: Annotated[
        str | None, "checkpoint of another run that it begins at, or null", Before(None)
    ]
    kept_by: Annotated[
        int | None,
        "rank that had the state of `resumed_from` in memory while others were replaced; else left "
        "out",
        Before(None),
    ] = None
    world_size: Annotated[int, "number of ranks", at_least(1)]
    local_batch_size: Annotated[int, "images of a micro-batch of a replica", at_least(1)]
    accumulation_steps: Annotated[int, "micro-batches of a step", at_least(1)]
    global_batch_size: Annotated[int, "images of a step, of all replicas", at_least(1)]
    steps_per_epoch: Annotated[int, "steps of an epoch", at_least(1)]
    target_steps: Annotated[int, "steps of the whole run", at_least(1)]
    device: Annotated[str, "`cpu` or `cuda`"]
    precision: Annotated[str, "of the forward and backward passes"]
    num_train_samples: Annotated[int, "images of the train split"]
    num_val_samples: Annotated[int, "images of the val split"]
    shard_set: Annotated[str | None, "title of the shard set", Before(None)]
    loading_seconds: Annotated[
        float | None, "how long rank 0 read checkpoint, index and cache", Before(None)
    ] = None
    compiling_seconds: Annotated[
        float | None, "how long its first passes took, which may compile", Before(None)
    ] = None
    format_version: Annotated[int, "of the rows from here on: 1", Before(1)] = EVENTS_VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainEvent(Row):
    """A log interval ended."""

    kind: ClassVar[str] = "train"
    loss: Annotated[float, "mean over the log interval", MAY_BE_NAN]
    top1: Annotated[float, "share of right answers, in training mode"]
    images_per_second: Annotated[float, "of all ranks, waiting included"]
    data_wait_ratio: Annotated[float, "share of the time that ranks waited for data"]
    phase_seconds: Annotated[Mapping[Label, float | None], "seconds of each phase, of rank 0"]
    grad_norm: Annotated[float | None, "of the last step, or null"]
    learning_rate: Annotated[float, "of the weights, at the last step"]
    skipped_steps: Annotated[int, "steps so far whose gradients were not finite"]
    saving_seconds: Annotated[
        float | None,
        "how long its steps waited while a state was copied that is then written; else left out",
        Before(None),
    ] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalEvent(Row):
    """An evaluation ended."""

    kind: ClassVar[str] = "eval"
    by: Annotated[EvaluatedBy, "the command: `train` or `evaluate`", Before("train")]
    split: Annotated[str, "`val` or another split"]
    views: Annotated[int | None, "of each image: 1, or the 10 of 2012", Before(None)]
    shard_set: Annotated[str | None, "title of the shard set", Before(None)]
    manifest_sha256: Annotated[str | None, "hash of its manifest", Before(None)]
    own_shards: Annotated[bool, "whether it is the one that the run trains on", Before(True)]
    top1: Annotated[float, "share of right answers"]
    top5: Annotated[
        float | None,
        "share with the right answer among five; null with five classes or fewer",
    ]
    loss: Annotated[float, "mean cross-entropy", MAY_BE_NAN]
    correct1: Annotated[int, "number of right answers"]
    correct5: Annotated[int | None, "as `top5`, or null"]
    seen: Annotated[int, "images counted"]
    expected: Annotated[int, "images of the split"]
    seconds: Annotated[float, "how long it took"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointEvent(Row):
    """A checkpoint is saved. Steps after it may have been done since it began."""

    kind: ClassVar[str] = "checkpoint"
    path: Annotated[str, "where it is"]
    num_bytes: Annotated[int, "its size"]
    seconds: Annotated[float, "how long writing took"]
    reason: Annotated[CheckpointReason, "`periodic`, `best` or `preempt`"]
    waited_seconds: Annotated[
        float | None,
        "how long the steps waited for it; left out if they waited for its end",
        Before(None),
    ] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm(Row):
    """Something is wrong, and training goes on."""

    kind: ClassVar[str] = "alarm"
    reason: ClassVar[AlarmReason]


@dataclass(frozen=True, kw_only=True, slots=True)
class NotLearning(Alarm):
    """The network only guesses, long after it should have begun to learn."""

    reason: ClassVar[AlarmReason] = "not_learning"
    loss: Annotated[float, "the loss, which is that of guessing", MAY_BE_NAN]


@dataclass(frozen=True, kw_only=True, slots=True)
class DamagedImage(Alarm):
    """Another image stands in for a damaged one."""

    reason: ClassVar[AlarmReason] = "damaged_image"
    rank: Annotated[int, "the rank that found it", Before(0)]
    sample: Annotated[int | None, "its number in the train split", Before(None)]
    shard: Annotated[str | None, "the file it is in", Before(None)]
    what: Annotated[str, "what is wrong with it"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Straggler(Alarm):
    """Ranks wait for a slower one."""

    reason: ClassVar[AlarmReason] = "straggler"
    slow: Annotated[SlowPart, "`rank`, `loader` (the delay wanders) or `unattributed`"]
    rank: Annotated[int | None, "which rank, or null"]
    host: Annotated[str | None, "its host, or null"]
    phase: Annotated[Label | None, "the phase in which the time is lost, or null"]
    lag_seconds: Annotated[float, "how much longer a step takes because of it"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicasDiffer(Alarm):
    """The weights of the replicas are not the same any more. The process group ends."""

    reason: ClassVar[AlarmReason] = "replicas_differ"
    rank: Annotated[int | None, "the rank that differs from the majority; null: undecided"]
    host: Annotated[str | None, "its host, or null"]
    tensor: Annotated[str, "the first one that differs"]
    what: Annotated[str, "which ranks differ, in a sentence"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SignalEvent(Row):
    """The ranks have agreed to stop."""

    kind: ClassVar[str] = "signal"
    source: Annotated[str, "what asked for a stop: a signal, `STOP file` or `end of torchrun`"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EndEvent(Row):
    """A process group has left."""

    kind: ClassVar[str] = "end"
    outcome: Annotated[EndOutcome, "`completed`, `stopped` or `failed`"]
    error: Annotated[str | None, "why it failed; only if it did"] = None
    cause: Annotated[
        FailureCause | None,
        "`lost_rank` if it failed only because another rank was gone; else left out",
    ] = None
    began: Annotated[
        float | None,
        "as in `start`, if it failed before its `start` row; else left out",
        Before(None),
    ] = None


Event = (
    SubmitEvent
    | StartEvent
    | RunEvent
    | TrainEvent
    | EvalEvent
    | CheckpointEvent
    | NotLearning
    | DamagedImage
    | Straggler
    | ReplicasDiffer
    | SignalEvent
    | EndEvent
)
EVENT_TYPES: tuple[type[Event], ...] = get_args(Event)
