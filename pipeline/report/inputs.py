"""What a report is made of, read from the run directory and its shard set; parts may be missing."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.shard_set.index import read_index
from data_prep.shard_set.manifest import MANIFEST_NAME, Manifest, manifest_sha256, read_manifest
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import find_faults, history_of, own_evaluations, read_rows
from pipeline.run.events import EvalEvent, Event
from pipeline.run.format_version import CONFIG_VERSION, PREDICTIONS_VERSION, check_format_version

SPLIT = "val"
"""The split whose predictions are shown."""


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
    rows: tuple[Event, ...]
    """All events, those too that a resume has made void."""
    faults: tuple[str, ...]
    """A sentence for each line of the events that had to be left out."""
    predictions: Predictions | Missing
    shard_set: ShardSet | Missing

    @property
    def events(self) -> list[Event]:
        """The one history of all attempts."""
        return history_of(self.rows)


def read_inputs(run: RunDirectory) -> Inputs:
    """Read everything there is.

    Raises `ValueError` if `run` is not a run directory, or its configuration is damaged, or
    a file is of a newer format version.
    """
    settings = _read_settings(run)
    shard_set = _read_shard_set(settings)
    is_begun = run.events.exists()
    rows = tuple(read_rows(run.events)) if is_begun else ()
    return Inputs(
        run=run,
        settings=settings,
        rows=rows,
        faults=tuple(find_faults(run.events)) if is_begun else (),
        predictions=_read_predictions(run.predictions(SPLIT), shard_set, history_of(rows)),
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
    check_format_version(settings.get("format_version", 1), CONFIG_VERSION, run.config)
    return settings


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


def _read_predictions(
    path: Path, shard_set: ShardSet | Missing, events: Sequence[Event]
) -> Predictions | Missing:
    try:
        with np.load(path) as arrays:
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
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        return Missing(f"The predictions in {path} are damaged ({error}): evaluate again.")
    if fault := _fault(predictions, shard_set):
        return Missing(f"The predictions in {path} do not fit ({fault}): evaluate again.")
    evaluations = own_evaluations(events)
    if not evaluations or not _are_of(predictions, evaluations[-1]):
        newest = f"of step {evaluations[-1].step:,}" if evaluations else "not in the events"
        return Missing(
            f"The predictions in {path}, of step {predictions.step:,}, are not those of the newest "
            f"evaluation, which is {newest}: evaluate again."
        )
    return predictions


def _are_of(predictions: Predictions, evaluation: EvalEvent) -> bool:
    """Whether the evaluation found them: step and views say it, on the run's own shard set."""
    views = (predictions.views, evaluation.views)
    return predictions.step == evaluation.step and (None in views or views[0] == views[1])


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
