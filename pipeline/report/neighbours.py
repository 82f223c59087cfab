"""Which training images are nearest to shown ones: figure 4 of the paper, right. No torch here.

The search takes long, so what it found is kept in `RUN/neighbours.json`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.shard_set.files import write_atomically
from data_prep.shard_set.manifest import manifest_sha256
from data_prep.shard_set.typed import check_types
from pipeline.report.inputs import Missing, ShardSet
from pipeline.run.directory import RunDirectory
from pipeline.run.format_version import NEIGHBOURS_VERSION, read_versioned


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """Images of the split `train` that are nearest to some of `val`, by the last hidden layer."""

    step: int
    """Of the checkpoint whose network it was."""
    state_sha256: str
    """Of that checkpoint's tensors."""
    manifest_sha256: str
    """Of the shard set."""
    num_searched: int
    """Images of `train` that were compared, at equal distances in its index."""
    num_train: int
    """Images of `train`."""
    num_damaged: int
    """Of those searched, and left out."""
    num_units: int
    """Of the last hidden layer."""
    nearest: Mapping[int, Sequence[tuple[int, float]]]
    """By sample of `val`, the samples of `train` and their Euclidean distances, nearest first."""


def nearest_images(
    run: RunDirectory,
    shard_set: ShardSet | Missing,
    train: ShardSet | Missing,
    samples: Sequence[int],
    num_images: int,
) -> Neighbours | Missing:
    """Those of the `samples` of `shard_set` among `num_images` of `train`; 0: what is kept."""
    if isinstance(shard_set, Missing):
        return shard_set
    if isinstance(train, Missing):
        return train
    try:
        if num_images:
            from pipeline.report.hidden_layer import find_neighbours  # here, as it needs torch

            return find_neighbours(run, shard_set, train, samples, num_images)
        found = read_neighbours(run.neighbours)
    except FileNotFoundError:
        return Missing(
            "Not searched so far: python -m pipeline.report RUN --neighbours 50000 compares the "
            "images above with as many training images, and takes some minutes."
        )
    except (ImportError, OSError, ValueError) as error:
        return Missing(f"The nearest training images are left out: {error}.")
    near = {sample for row in found.nearest.values() for sample, _ in row}
    is_inside = found.nearest.keys() <= {*range(len(shard_set.index))} and all(
        0 <= sample < len(train.index) for sample in near
    )
    if not is_inside or found.manifest_sha256 != manifest_sha256(shard_set.path):
        return Missing(f"{run.neighbours} is of another shard set: search again with --neighbours.")
    return found


def write_neighbours(path: Path, found: Neighbours) -> None:
    """Raises `OSError`."""
    content = {"format_version": NEIGHBOURS_VERSION, **dataclasses.asdict(found)}
    write_atomically(path, json.dumps(content).encode() + b"\n")


def read_neighbours(path: Path) -> Neighbours:
    """Raises `OSError` if it is not there, and `ValueError` if it is damaged or newer."""
    content = read_versioned(path, NEIGHBOURS_VERSION)
    try:
        names = {field.name for field in dataclasses.fields(Neighbours)}
        nearest = {
            int(sample): [(near, distance) for near, distance in row]
            for sample, row in content["nearest"].items()
        }
        found = Neighbours(**{name: content[name] for name in names} | {"nearest": nearest})
        check_types(found, Neighbours, "")
        return found
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): search again with --neighbours") from None
