"""What a report is made of, read from the run directory and its shard set; parts may be missing."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.manifest import (
    MANIFEST_NAME,
    Manifest,
    manifest_sha256,
    read_index,
    read_manifest,
)
from pipeline.events import Event, read_events
from pipeline.run_directory import RunDirectory

SPLIT = "val"
"""The split whose predictions are shown."""

_EVENT_FIELDS: Mapping[str, tuple[str, ...]] = {
    "run": ("resumed_from", "world_size", "local_batch_size", "accumulation_steps", "device",
            "global_batch_size", "steps_per_epoch", "target_steps", "precision",
            "num_train_samples", "num_val_samples"),
    "train": ("loss", "top1", "learning_rate", "images_per_second", "phase_seconds"),
    "eval": ("split", "top1", "top5", "loss", "correct1", "correct5", "seen", "expected"),
    "checkpoint": ("num_bytes", "seconds", "reason"),
    "alarm": ("reason", "loss"),
    "signal": ("source",),
    "end": ("outcome",),
}  # fmt: skip
"""The fields of `pipeline.events` that a report uses."""


@dataclass(frozen=True, slots=True)
class Missing:
    """Stands for a part that is not there."""

    reason: str
    """One sentence, for the page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """The latest evaluation, sample by sample; row `i` is sample `i` of the split's index."""

    step: int
    labels: npt.NDArray[np.int64]
    """Right classes, [n]."""
    topk_classes: npt.NDArray[np.int64]
    """Most probable classes, best first, [n, k]."""
    topk_probabilities: npt.NDArray[np.float32]
    """Their probabilities, [n, k]."""

    @property
    def num_classes_seen(self) -> int:
        """One more than the highest class that occurs."""
        return 1 + int(max(self.labels.max(), self.topk_classes.max()))


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSet:
    """The shard set a run was trained on."""

    path: Path
    manifest: Manifest
    index: npt.NDArray[np.void]
    """Of the shown split, `INDEX_DTYPE[num_samples]`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """All that a report is made of."""

    run: RunDirectory
    settings: Mapping[str, Any]
    """What `config.json` holds."""
    events: tuple[Event, ...]
    predictions: Predictions | Missing
    shard_set: ShardSet | Missing


def read_inputs(run: RunDirectory) -> Inputs:
    """Read everything there is.

    Raises `ValueError` if `run` is not a run directory, or its configuration or events are damaged.
    """
    settings = _read_settings(run)
    shard_set = _read_shard_set(settings)
    return Inputs(
        run=run,
        settings=settings,
        events=_read_events(run.events),
        predictions=_read_predictions(run.predictions(SPLIT), shard_set),
        shard_set=shard_set,
    )


def _read_settings(run: RunDirectory) -> Mapping[str, Any]:
    try:
        settings = json.loads(run.config.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{run.path} is not a run directory: it has no {run.config.name}; "
            "give the --run-dir of a training run"
        ) from None
    except ValueError as error:
        raise ValueError(f"{run.config} is damaged ({error}): restore it from a copy") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("config"), dict):
        raise ValueError(f"{run.config} is not a run's configuration: it has no 'config' object")
    return settings


def _read_events(path: Path) -> tuple[Event, ...]:
    try:
        events = tuple(read_events(path))
    except FileNotFoundError:
        return ()
    except (KeyError, TypeError):
        raise ValueError(f"{path} is damaged: a line of it is not an event") from None
    for event in events:
        required = ("step", "epoch", "time", *_EVENT_FIELDS.get(event["kind"], ()))
        if lacking := [name for name in required if name not in event]:
            raise ValueError(
                f"{path} is damaged: a '{event['kind']}' event has no {', '.join(lacking)}"
            )
    return events


def _read_shard_set(settings: Mapping[str, Any]) -> ShardSet | Missing:
    data = settings["config"].get("data")
    location = data.get("shards") if isinstance(data, dict) else None
    if not isinstance(location, str):
        return Missing("The run's configuration names no shard set.")
    path = Path(location)
    try:
        manifest = read_manifest(path)
        if manifest_sha256(path) != settings.get("manifest_sha256"):
            return Missing(
                f"The shard set {path} has changed since this run (the hash of its {MANIFEST_NAME} "
                "differs), so its images and class names are left out."
            )
        index = read_index(path, manifest.split(SPLIT))
    except (OSError, ValueError) as error:
        return Missing(f"Images and class names are left out: {error}.")
    return ShardSet(path=path, manifest=manifest, index=index)


def _read_predictions(path: Path, shard_set: ShardSet | Missing) -> Predictions | Missing:
    try:
        with np.load(path) as arrays:
            predictions = Predictions(
                step=int(arrays["step"]),
                labels=arrays["labels"].astype(np.int64),
                topk_classes=arrays["topk_classes"].astype(np.int64),
                topk_probabilities=arrays["topk_probabilities"].astype(np.float32),
            )
    except FileNotFoundError:
        return Missing("No evaluation has been saved yet.")
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        return Missing(f"The predictions in {path} are damaged ({error}): evaluate again.")
    if fault := _fault(predictions, shard_set):
        return Missing(f"The predictions in {path} do not fit ({fault}): evaluate again.")
    return predictions


def _fault(predictions: Predictions, shard_set: ShardSet | Missing) -> str | None:
    """Why the predictions cannot be shown, or None."""
    labels, topk = predictions.labels, predictions.topk_classes
    if labels.ndim != 1 or topk.ndim != 2 or len(topk) != len(labels) or topk.size == 0:
        return f"labels of shape {labels.shape}, classes of shape {topk.shape}"
    if topk.shape != predictions.topk_probabilities.shape:
        return f"{topk.shape} classes, {predictions.topk_probabilities.shape} probabilities"
    if min(labels.min(), topk.min()) < 0:
        return "a class below 0"
    if isinstance(shard_set, Missing):
        return None
    if not np.array_equal(labels, shard_set.index["label"]):
        return "their labels are not those of the shard set"
    if predictions.num_classes_seen > shard_set.manifest.num_classes:
        return f"a class above the {shard_set.manifest.num_classes} of the shard set"
    return None
