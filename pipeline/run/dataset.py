"""What a network was trained on, as far as its use needs it: `data.json` and `mean_image.npy`.

A run keeps them beside its checkpoints, so that its network can be used after the shard set is
gone; an export keeps them beside its weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from data_prep.shard_set.files import write_atomically
from data_prep.shard_set.index import read_mean_image
from data_prep.shard_set.manifest import (
    Encoding,
    Manifest,
    Statistics,
    as_tuples,
    manifest_sha256,
    read_manifest,
)
from data_prep.shard_set.typed import check_types
from pipeline.run.directory import RunDirectory
from pipeline.run.format_version import DATASET_VERSION, read_versioned
from pipeline.run.settings import Settings

NAME = "data.json"
MEAN_IMAGE = "mean_image.npy"
_MEAN_IMAGES = (None, MEAN_IMAGE)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dataset:
    """The shard set of a network, without its images."""

    title: str
    """What people call it."""
    source: str
    encoding: Encoding
    image_size: tuple[int, int] | None
    """Height and width of every stored image; None: they differ in size."""
    class_names: tuple[str, ...]
    """In label order."""
    statistics: Statistics
    num_samples: Mapping[str, int]
    """Images of each split, by its name."""
    manifest_sha256: str
    options: Mapping[str, str | int | float | None]
    """Those of the conversion."""
    mean_image: npt.NDArray[np.float32] | None = None
    """Of the train split, H×W×3, 0–255 scale; None: the network does not need it."""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @classmethod
    def of_shards(
        cls, shards: Path, manifest: Manifest, sha256: str, *, with_mean_image: bool
    ) -> Self:
        """That of the shard set in a folder, whose manifest has the hash `sha256`.

        Raises `ShardSetError` if the mean image is wanted and is not there.
        """
        statistics = manifest.statistics
        return cls(
            title=manifest.title,
            source=manifest.source,
            encoding=manifest.encoding,
            image_size=manifest.image_size,
            class_names=manifest.class_names,
            statistics=statistics,
            num_samples={name: split.num_samples for name, split in manifest.splits.items()},
            manifest_sha256=sha256,
            options=manifest.options,
            mean_image=read_mean_image(shards, statistics) if with_mean_image else None,
        )


def write_dataset(folder: Path, dataset: Dataset) -> None:
    """Write it into `folder`, unless it is there already. Raises `OSError`."""
    content = {"format_version": DATASET_VERSION, **to_json(dataset, folder)}
    _write(folder / NAME, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")


def to_json(dataset: Dataset, folder: Path) -> dict[str, Any]:
    """All but the mean image, which is written into `folder`. Raises `OSError`."""
    kept: dict[str, str | None] = {"mean_image_filename": None, "mean_image_sha256": None}
    if dataset.mean_image is not None:
        image = io.BytesIO()
        np.save(image, dataset.mean_image)
        sha256 = hashlib.sha256(image.getvalue()).hexdigest()
        kept = {"mean_image_filename": MEAN_IMAGE, "mean_image_sha256": sha256}
        _write(folder / MEAN_IMAGE, image.getvalue())
    fields = {each.name: getattr(dataset, each.name) for each in dataclasses.fields(dataset)}
    del fields["mean_image"]
    fields["statistics"] = dataclasses.asdict(dataset.statistics) | kept
    return fields


def _write(path: Path, content: bytes) -> None:
    if not path.exists() or path.read_bytes() != content:
        write_atomically(path, content)


def read_dataset(folder: Path) -> Dataset:
    """Read what `write_dataset` wrote.

    Raises `FileNotFoundError` if it is not there, and `ValueError` if it is damaged or newer.
    """
    path = folder / NAME
    return from_json(read_versioned(path, DATASET_VERSION), path)


def from_json(found: Mapping[str, Any], path: Path) -> Dataset:
    """The inverse of `to_json`, of what the file at `path` holds; raises `ValueError`."""
    try:
        names = {each.name for each in dataclasses.fields(Dataset)} - {"mean_image"}
        fields = {name: as_tuples(found[name]) for name in names}
        kinds = {each.name for each in dataclasses.fields(Statistics)}
        known = {name: value for name, value in fields["statistics"].items() if name in kinds}
        dataset = Dataset(**fields | {"statistics": Statistics(**known)})
        check_types(dataset, Dataset, "")
        if not dataset.class_names or dataset.statistics.mean_image_filename not in _MEAN_IMAGES:
            raise ValueError("class_names or mean_image_filename is not as written")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): restore it from a copy") from None
    if dataset.statistics.mean_image_filename is None:
        return dataset
    return dataclasses.replace(dataset, mean_image=read_mean_image(path.parent, dataset.statistics))


def dataset_of_run(run: RunDirectory, settings: Settings) -> Dataset:
    """What the run was trained on; of a run of an older version, from the shard set it names.

    Raises `ValueError` if that is no longer there, or has changed.
    """
    try:
        dataset = read_dataset(run.path)
    except FileNotFoundError:
        dataset = dataset_of_settings(settings)
    if dataset.manifest_sha256 != settings.manifest_sha256:
        raise ValueError(
            f"{run.path / NAME} is of another shard set than {run.config.name} beside it: delete "
            f"it, and see that {settings.config.data.shards} is there"
        )
    return dataset


def dataset_of_settings(settings: Settings) -> Dataset:
    """That of the shard set that the settings name, or of what is cached of it on this host.

    Raises `ValueError` if it is not there, or has changed.
    """
    config = settings.config
    data, sha256 = config.data, settings.manifest_sha256
    folder = Path(data.cache_dir) / sha256 if data.is_remote else Path(data.shards)
    try:
        manifest = read_manifest(folder)
        found = manifest_sha256(folder)
        dataset = Dataset.of_shards(
            folder, manifest, found, with_mean_image=config.augment.subtracts_mean_image
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"class names and colour statistics are in no {NAME}, and cannot be read from the "
            f"shard set that was trained on ({error}): put it back there, or resume the run once "
            "with --data.shards and the place where it is now"
        ) from None
    if found != sha256:
        raise ValueError(
            f"{folder} is not the shard set that was trained on, and class names and colour "
            f"statistics are in no {NAME}: put that one back there"
        )
    return dataset
