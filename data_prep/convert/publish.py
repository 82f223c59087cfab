"""Adds finished shards up, and writes their indexes, statistics and, last, the manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from data_prep.convert.assignment import ShardName
from data_prep.convert.changes import save_stamps
from data_prep.convert.output import OWN_FIELDS, ConversionError, ConversionPlan, clean_up
from data_prep.convert.shard import ShardContents, ShardRecord, check_sizes
from data_prep.convert.statistics import mean_image, summarize
from data_prep.shard_set.fields import name_some
from data_prep.shard_set.files import sha256_of, write_atomically
from data_prep.shard_set.manifest import (
    FORMAT_VERSION,
    Manifest,
    Split,
    Statistics,
    hash_class_names,
    serialize,
    write_manifest,
)

_log = logging.getLogger(__name__)

_MEAN_IMAGE_NAME = "train.mean.npy"


class ConversionTotals:
    """The records of finished shards, and the sum of their contents."""

    def __init__(self, plan: ConversionPlan, *, max_reject_ratio: float) -> None:
        """`add` fails if more than `max_reject_ratio` of all samples are rejected."""
        self.records: dict[ShardName, ShardRecord] = {}
        self.contents = ShardContents()
        self._encoding = plan.encoding
        self._num_samples = sum(plan.num_samples.values())
        self._max_reject_ratio = max_reject_ratio

    def add(self, name: ShardName, record: ShardRecord) -> None:
        """Add a shard; raises `ConversionError` if no shard set can be made with it."""
        self.contents.merge(record.contents)
        record.contents = ShardContents()  # to save memory: it has a mean image
        self.records[name] = record
        check_sizes(self.contents.sizes, self._encoding)
        if len(self.contents.rejected) > self._max_reject_ratio * self._num_samples:
            raise ConversionError(
                f"{len(self.contents.rejected)} of {self._num_samples} images so far cannot be "
                "used, more than the allowed share "
                f"(--max-reject-ratio {self._max_reject_ratio:g}): "
                f"{name_some(_describe_rejected(self.contents.rejected))}; repair them and "
                "run the same command again, allow more, or convert without them into a new folder"
            )


def publish(shards: Path, plan: ConversionPlan, totals: ConversionTotals) -> Manifest:
    """Write the indexes, the mean image and, last, the manifest; `totals` has all shards.

    Raises `ConversionError` if no image of a split can be used.
    """
    contents = totals.contents
    height, width = next(iter(contents.sizes)) if len(contents.sizes) == 1 else (None, None)
    for description in _describe_rejected(contents.rejected):
        _log.warning("left out: %s", description)
    names = plan.shard_names()
    splits = {
        split: publish_split(
            shards,
            split,
            {name.filename: totals.records[name] for name in names if name.split == split},
        )
        for split in plan.num_samples
    }
    settings = plan.settings
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        encoding=plan.encoding,
        image_height=height,
        image_width=width,
        class_names=plan.class_names,
        class_names_sha256=hash_class_names(plan.class_names),
        splits=splits,
        statistics=_publish_statistics(shards, contents),
        source=settings["source"],
        name=settings.get("name"),  # a conversion begun by an older version has none
        options={name: settings[name] for name in settings if name not in OWN_FIELDS},
        seed=settings["seed"],
        rewritten=dict(contents.rewritten),
        rejected=dict(Counter(reason for _, reason, _ in contents.rejected)),
    )
    stamps = [totals.records[name].stamps for name in names]
    if any(part.any() for part in stamps):  # else no image can be replaced
        save_stamps(shards, hashlib.sha256(serialize(manifest)).hexdigest(), stamps)
    write_manifest(shards, manifest)
    clean_up(shards)
    return manifest


class FinishedShard(Protocol):
    """What a split says of each of its shards; see `ShardRecord`."""

    @property
    def num_bytes(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    @property
    def index(self) -> npt.NDArray[np.void]: ...
    @property
    def checksums(self) -> npt.NDArray[np.uint32]: ...


def publish_split(shards: Path, name: str, records: Mapping[str, FinishedShard]) -> Split:
    """Write a split's index and checksums.

    `records` are by file name, in shard order. Raises `ConversionError` if they hold no sample.
    """
    index = np.concatenate([record.index for record in records.values()])
    checksums = np.concatenate([record.checksums for record in records.values()])
    if not len(index):
        raise ConversionError(f"no image of the split '{name}' can be used")
    index_name, checksums_name = f"{name}.index.npy", f"{name}.crc32.npy"
    return Split(
        name=name,
        num_samples=len(index),
        filenames=tuple(records),
        shard_lengths=tuple(len(record.index) for record in records.values()),
        shard_bytes=tuple(record.num_bytes for record in records.values()),
        shard_sha256=tuple(record.sha256 for record in records.values()),
        index_filename=index_name,
        index_sha256=_save(shards / index_name, index),
        checksums_filename=checksums_name,
        checksums_sha256=_save(shards / checksums_name, checksums),
    )


def _publish_statistics(shards: Path, contents: ShardContents) -> Statistics:
    """Write the mean image, if all images have one size; returns all statistics."""
    statistics = summarize(contents.pixels)
    if len(contents.sizes) > 1:
        return statistics
    sha256 = _save(shards / _MEAN_IMAGE_NAME, mean_image(contents.pixels))
    return dataclasses.replace(
        statistics, mean_image_filename=_MEAN_IMAGE_NAME, mean_image_sha256=sha256
    )


def _save(path: Path, array: npt.NDArray[np.generic]) -> str:
    """Write an .npy file; returns its sha256."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_atomically(path, buffer.getvalue())
    return sha256_of(path)


def _describe_rejected(rejected: Sequence[tuple[str, str, str]]) -> list[str]:
    """Each rejected image, what is wrong with it and what to do, sorted."""
    return sorted(f"{locator} ({what})" for locator, _, what in rejected)
