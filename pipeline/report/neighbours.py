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
from pipeline.report.inputs import Missing, ShardSet
from pipeline.run.directory import RunDirectory
from pipeline.run.format_version import NEIGHBOURS_VERSION, read_versioned


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """What was looked for, where."""

    step: int
    """Of the checkpoint whose network it was."""
    state_sha256: str
    """Of that checkpoint's tensors."""
    manifest_sha256: str
    """Of the shard set."""
    samples: tuple[int, ...]
    """Of the split `val`."""
    num_searched: int
    """Images of the split `train` that they were compared with, at equal distances in its index."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """The nearest images of the split `train`, in the last hidden layer's space."""

    search: Search
    num_train: int
    """Images of the split."""
    num_damaged: int
    """Of those searched, and left out."""
    num_units: int
    """Of the last hidden layer."""
    nearest: tuple[tuple[int, ...], ...]
    """For each of the `search.samples`, nearest first."""
    distances: tuple[tuple[float, ...], ...]
    """Euclidean."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NearImage:
    """A training image beside a shown one."""

    sample: int
    class_name: str
    distance: float
    is_alike: bool
    """Whether both are of one class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NearestImages:
    """What a page shows of them."""

    found: Neighbours
    rows: Mapping[tuple[int, str], Sequence[NearImage]]
    """By the sample of `val` and its class."""


def nearest_images(
    run: RunDirectory,
    shard_set: ShardSet | Missing,
    train: ShardSet | Missing,
    samples: Sequence[int],
    num_images: int,
) -> NearestImages | Missing:
    """Those of the `samples` of `shard_set` among `num_images` of `train`; 0: what is kept."""
    if isinstance(shard_set, Missing):
        return shard_set
    if isinstance(train, Missing):
        return train
    try:
        if num_images:
            from pipeline.report.hidden_layer import find_neighbours  # here, as it needs torch

            found = find_neighbours(run, shard_set, train, samples, num_images)
        else:
            found = read_neighbours(run.neighbours)
    except FileNotFoundError:
        return Missing(
            "Not searched so far: python -m pipeline.report RUN --neighbours 50000 compares the "
            "images above with as many training images, and takes some minutes."
        )
    except (ImportError, OSError, ValueError) as error:
        return Missing(f"The nearest training images are left out: {error}.")
    is_inside = {*found.search.samples} <= {*range(len(shard_set.index))} and all(
        0 <= sample < len(train.index) for row in found.nearest for sample in row
    )
    if not is_inside or found.search.manifest_sha256 != manifest_sha256(shard_set.path):
        return Missing(f"{run.neighbours} is of another shard set: search again with --neighbours.")
    return NearestImages(found=found, rows=_rows(found, shard_set, train))


def _rows(
    found: Neighbours, shard_set: ShardSet, train: ShardSet
) -> dict[tuple[int, str], list[NearImage]]:
    names, rows = train.manifest.class_names, {}
    of_each = zip(found.search.samples, found.nearest, found.distances, strict=True)
    for shown, samples, distances in of_each:
        label = shard_set.index[shown]["label"]
        rows[shown, names[label]] = [
            NearImage(
                sample=sample,
                class_name=names[train.index[sample]["label"]],
                distance=distance,
                is_alike=bool(train.index[sample]["label"] == label),
            )
            for sample, distance in zip(samples, distances, strict=True)
        ]
    return rows


def write_neighbours(path: Path, found: Neighbours) -> None:
    """Raises `OSError`."""
    content = {"format_version": NEIGHBOURS_VERSION, **dataclasses.asdict(found)}
    write_atomically(path, json.dumps(content).encode() + b"\n")


def read_neighbours(path: Path) -> Neighbours:
    """Raises `OSError` if it is not there, and `ValueError` if it is damaged or newer."""
    content = read_versioned(path, NEIGHBOURS_VERSION)
    try:
        search = content["search"]
        found = Neighbours(
            search=Search(
                step=int(search["step"]),
                state_sha256=str(search["state_sha256"]),
                manifest_sha256=str(search["manifest_sha256"]),
                samples=tuple(map(int, search["samples"])),
                num_searched=int(search["num_searched"]),
            ),
            num_train=int(content["num_train"]),
            num_damaged=int(content["num_damaged"]),
            num_units=int(content["num_units"]),
            nearest=tuple(tuple(map(int, row)) for row in content["nearest"]),
            distances=tuple(tuple(map(float, row)) for row in content["distances"]),
        )
        shapes = [list(map(len, rows)) for rows in (found.nearest, found.distances)]
        if shapes[0] != shapes[1] or len(found.nearest) != len(found.search.samples):
            raise ValueError("its rows differ in length")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): search again with --neighbours") from None
    return found
