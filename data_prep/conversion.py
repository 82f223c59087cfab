"""Turns a source into a shard set: plans the shards, has them written, publishes the manifest."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

from data_prep.assignment import assign
from data_prep.files import sha256_of, write_atomically
from data_prep.manifest import (
    FORMAT_VERSION,
    Encoding,
    Manifest,
    Split,
    Statistics,
    hash_class_names,
    write_manifest,
)
from data_prep.output import ConversionError, OutputFolder, Settings, claim
from data_prep.pool import ShardJob, write_shards
from data_prep.progress import Progress
from data_prep.shards import ShardContents, ShardPlan, ShardRecord
from data_prep.sources import Source
from data_prep.statistics import (
    PixelSums,
    colour_mean,
    colour_std,
    mean_image,
    principal_components,
)

logger = logging.getLogger(__name__)

_MEAN_IMAGE_NAME = "train.mean.npy"
_MAX_NAMED = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How to convert; only the first four decide what comes out."""

    encoding: Encoding
    size: int | None
    """Height and width to scale and crop to; None keeps the images' own."""
    samples_per_shard: int
    seed: int
    num_workers: int
    max_reject_ratio: float
    """Of all samples of the source; more rejected ones stop the conversion."""


class _Tally:
    """What the finished shards add up to."""

    def __init__(self) -> None:
        self.records: dict[str, ShardRecord] = {}
        """By the shard's file name."""
        self.contents = ShardContents()

    def add(self, plan: ShardPlan, record: ShardRecord) -> None:
        self.contents.merge(record.contents)
        record.contents = ShardContents()  # memory: not a mean image for every shard
        self.records[plan.filename] = record


def convert(source: Source, shards: Path, options: Options, stream: TextIO) -> tuple[Manifest, int]:
    """Make the shard set `shards`, or finish the one that was begun there.

    Returns the manifest and how many shards this call has written; progress goes to `stream`.
    Raises `ConversionError` if the conversion cannot start or go on; what is finished by then is
    kept, and the same call goes on from there.
    """
    plans = plan_shards(source, options)
    settings = _settings(source, options)
    with claim(shards) as output:
        manifest = output.finished(settings)
        if manifest is not None:
            return manifest, 0
        tally, num_written = _write_missing(source, output, options, plans, stream)
        manifest = _publish(source, output.path, options, plans, tally)
        output.clean_up()
    return manifest, num_written


def plan_shards(source: Source, options: Options) -> list[ShardPlan]:
    """What goes into which shard: the same whatever else is asked of the conversion."""
    plans = []
    for split, samples in source.splits.items():
        shards = assign(
            [sample.key for sample in samples],
            seed=options.seed,
            samples_per_shard=options.samples_per_shard,
        )
        plans += [
            ShardPlan(split=split, number=number, samples=tuple(samples[row] for row in rows))
            for number, rows in enumerate(shards)
        ]
    return plans


def _settings(source: Source, options: Options) -> Settings:
    return {
        "source": source.name,
        "encoding": options.encoding,
        "seed": options.seed,
        "class_names_sha256": hash_class_names(source.class_names),
        **_manifest_options(source, options),
    }


def _manifest_options(source: Source, options: Options) -> Settings:
    digest = hashlib.sha256()
    for split, samples in source.splits.items():
        for line in sorted(f"{split} {sample.key} {sample.label}\n" for sample in samples):
            digest.update(line.encode())
    return {
        "size": options.size,
        "samples_per_shard": options.samples_per_shard,
        "samples_sha256": digest.hexdigest(),
    }


def _write_missing(
    source: Source,
    output: OutputFolder,
    options: Options,
    plans: Sequence[ShardPlan],
    stream: TextIO,
) -> tuple[_Tally, int]:
    """Write the shards that have no record yet; returns what all add up to, and their number."""
    job = ShardJob(
        reader=source.reader,
        shards=output.path,
        records=output.records,
        encoding=options.encoding,
        size=options.size,
    )
    tally = _Tally()
    num_samples = sum(len(samples) for samples in source.splits.values())
    missing = []
    for plan in plans:
        record = _load_finished(job, plan)
        if record is None:
            missing.append(plan)
        else:
            tally.add(plan, record)
            _check(tally.contents, options, num_samples)
    num_before = num_samples - sum(len(plan.samples) for plan in missing)
    if num_before:
        logger.info("%d of %d shards are finished already", len(plans) - len(missing), len(plans))
    progress = Progress("sharding", num_samples, "samples", stream, num_before=num_before)
    with (
        contextlib.closing(progress),
        contextlib.closing(write_shards(missing, job, options.num_workers, progress.show)) as done,
    ):
        for plan in done:
            tally.add(plan, ShardRecord.load(job.record_path(plan)))
            _check(tally.contents, options, num_samples)
    return tally, len(missing)


def _load_finished(job: ShardJob, plan: ShardPlan) -> ShardRecord | None:
    try:
        record = ShardRecord.load(job.record_path(plan))
        is_whole = (job.shards / plan.filename).stat().st_size == record.num_bytes
    except FileNotFoundError:
        return None
    return record if is_whole else None


def _check(contents: ShardContents, options: Options, num_samples: int) -> None:
    """Stop as soon as it is certain that no shard set can come of it."""
    if options.encoding == "rgb" and len(contents.sizes) > 1:
        (height, width), (other_height, other_width) = sorted(contents.sizes)[:2]
        raise ConversionError(
            f"the images differ in size ({height}×{width}, {other_height}×{other_width}); "
            "--encoding rgb needs one: give --size N, or --encoding jpeg"
        )
    if len(contents.rejected) > options.max_reject_ratio * num_samples:
        raise ConversionError(
            f"{len(contents.rejected)} of {num_samples} images so far cannot be used, more than "
            f"the allowed share (--max-reject-ratio {options.max_reject_ratio:g}): "
            f"{name_rejected(contents.rejected)}; repair or remove them, or allow more"
        )


def name_rejected(rejected: Sequence[tuple[str, str]]) -> str:
    """A few rejected images with their reasons."""
    named = ", ".join(f"{locator} ({reason})" for locator, reason in sorted(rejected)[:_MAX_NAMED])
    more = len(rejected) - _MAX_NAMED
    return f"{named} and {more} more" if more > 0 else named


def _publish(
    source: Source,
    shards: Path,
    options: Options,
    plans: Sequence[ShardPlan],
    tally: _Tally,
) -> Manifest:
    """Write the indexes, the mean image and, last, the manifest."""
    contents = tally.contents
    height, width = next(iter(contents.sizes)) if len(contents.sizes) == 1 else (None, None)
    if contents.rejected:
        logger.warning("left out: %s", name_rejected(contents.rejected))
    splits = {}
    for name in source.splits:
        filenames = [plan.filename for plan in plans if plan.split == name]
        records = {filename: tally.records[filename] for filename in filenames}
        splits[name] = _publish_split(shards, name, records)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        encoding=options.encoding,
        image_height=height,
        image_width=width,
        class_names=source.class_names,
        class_names_sha256=hash_class_names(source.class_names),
        splits=splits,
        statistics=_publish_statistics(shards, contents.pixels),
        source=source.name,
        options=_manifest_options(source, options),
        seed=options.seed,
        rewritten=dict(contents.rewritten),
        rejected=dict(Counter(reason for _, reason in contents.rejected)),
    )
    write_manifest(shards, manifest)
    return manifest


def _publish_split(shards: Path, name: str, records: Mapping[str, ShardRecord]) -> Split:
    """Write a split's index and checksums; `records` are in shard order."""
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


def _publish_statistics(shards: Path, pixels: PixelSums) -> Statistics:
    stds, vectors = principal_components(pixels)
    image = mean_image(pixels)
    return Statistics(
        num_images=pixels.num_images,
        mean=colour_mean(pixels),
        std=colour_std(pixels),
        pca_stds=tuple(stds.tolist()),
        pca_vectors=tuple(tuple(row) for row in vectors.tolist()),
        mean_image_filename=None if image is None else _MEAN_IMAGE_NAME,
        mean_image_sha256=None if image is None else _save(shards / _MEAN_IMAGE_NAME, image),
    )


def _save(path: Path, array: npt.NDArray[np.generic]) -> str:
    """Write an .npy file; returns its sha256."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_atomically(path, buffer.getvalue())
    return sha256_of(path)
