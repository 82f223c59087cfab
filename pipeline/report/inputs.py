"""What a report is made of, read from the run directory and its shard set; parts may be missing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.shard_set.index import check_labels, read_index
from data_prep.shard_set.manifest import MANIFEST_NAME, Manifest, manifest_sha256, read_manifest
from pipeline.run.event_log import own_evaluations
from pipeline.run.events import EvalEvent, Event
from pipeline.run.format_version import PREDICTIONS_VERSION, check_format_version

SPLIT = "val"
"""The split whose predictions are shown."""

_MOST_BYTES = 1 << 30
"""Of predictions, unpacked; those of ImageNet have 6 MB."""


@dataclass(frozen=True, slots=True)
class Missing:
    """Stands for a part that is not there."""

    reason: str
    """One sentence, for the page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """The newest evaluation, sample by sample; row `i` is sample `i` of the split's index."""

    step: int
    views: int | None
    """Of each image; None in files of older versions."""
    labels: npt.NDArray[np.int64]
    """Right classes, [n]."""
    topk_classes: npt.NDArray[np.int64]
    """Most probable classes, best first, [n, k]."""
    topk_probabilities: npt.NDArray[np.float32]
    """Their probabilities, [n, k]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSet:
    """A split of the shard set that a run was trained on."""

    path: Path
    manifest: Manifest
    split: str
    index: npt.NDArray[np.void]
    """Of the split, `INDEX_DTYPE[num_samples]`."""


def read_shard_set(settings: Mapping[str, Any], split: str = SPLIT) -> ShardSet | Missing:
    """Of the shard set that `settings`, a run's `config.json`, names."""
    path = Path(settings["config"]["data"]["shards"])
    try:
        manifest = read_manifest(path)
        if manifest_sha256(path) != settings["manifest_sha256"]:
            return Missing(
                f"The shard set {path} has changed since this run (the hash of its {MANIFEST_NAME} "
                "differs), so its images and class names are left out."
            )
        index = read_index(path, manifest.split(split))
        check_labels(index["label"], manifest.num_classes, f"{split} of {path}")
    except (OSError, ValueError) as error:
        return Missing(f"Images and class names are left out: {error}.")
    return ShardSet(path=path, manifest=manifest, split=split, index=index)


def read_predictions(
    path: Path, shard_set: ShardSet | Missing, events: Sequence[Event]
) -> Predictions | Missing:
    """The predictions at `path`, if they are of the newest evaluation in `events`."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            if sum(each.file_size for each in arrays.zip.infolist()) > _MOST_BYTES:
                raise ValueError(f"they unpack to more than {_MOST_BYTES:,} bytes")
            version = int(arrays["format_version"]) if "format_version" in arrays else 1
            check_format_version(version, PREDICTIONS_VERSION, path)
            predictions = Predictions(
                step=int(arrays["step"]),
                views=int(arrays["views"]) if "views" in arrays else None,
                labels=arrays["labels"].astype(np.int64),
                topk_classes=arrays["topk_classes"].astype(np.int64),
                topk_probabilities=arrays["topk_probabilities"].astype(np.float32),
            )
    except FileNotFoundError:
        return Missing("No evaluation has been saved yet.")
    except Exception as error:  # a damaged file raises anything
        return Missing(f"The predictions in {path} are damaged ({error}): evaluate again.")
    if (fault := _fault(predictions, shard_set)) is not None:
        return Missing(f"The predictions in {path} are damaged ({fault}): evaluate again.")
    if not isinstance(shard_set, Missing) and not np.array_equal(
        predictions.labels, shard_set.index["label"]
    ):
        return Missing(
            f"The predictions in {path} do not fit (their labels are not those of the shard set): "
            "evaluate again."
        )
    newest = own_evaluations(events)[-1:]
    if not any(_are_of(predictions, evaluation) for evaluation in newest):
        where = f"of step {newest[0].step:,}" if newest else "not in the events"
        return Missing(
            f"The predictions in {path}, of step {predictions.step:,}, are not those of the newest "
            f"evaluation, which is {where}: evaluate again."
        )
    return predictions


def _fault(predictions: Predictions, shard_set: ShardSet | Missing) -> str | None:
    """What keeps them from being answers for images; None: nothing."""
    classes, probabilities = predictions.topk_classes, predictions.topk_probabilities
    count = math.inf if isinstance(shard_set, Missing) else shard_set.manifest.num_classes
    if classes.ndim != 2 or classes.shape != probabilities.shape or not classes.size:
        return f"its arrays have the shapes {classes.shape} and {probabilities.shape}"
    if predictions.labels.shape != classes.shape[:1]:
        return f"it has {classes.shape[0]} answers and labels of shape {predictions.labels.shape}"
    if classes.min() < 0 or classes.max() >= count:
        return f"it has classes from {classes.min()} to {classes.max()}"
    return None if np.isfinite(probabilities).all() else "its probabilities are not finite"


def _are_of(predictions: Predictions, evaluation: EvalEvent) -> bool:
    """Whether the evaluation found them, by step and views; the shard set is the run's own."""
    views = (predictions.views, evaluation.views)
    return predictions.step == evaluation.step and (None in views or views[0] == views[1])
