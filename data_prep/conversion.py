"""Turns a source into a shard set: plans the shards, has them written, publishes the manifest."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from data_prep.assignment import assign
from data_prep.manifest import (
    FORMAT_VERSION,
    Encoding,
    Manifest,
    check_shard_sizes,
    hash_class_names,
    write_manifest,
)
from data_prep.output import ConversionError, Settings, claim, clean_up, find_finished
from data_prep.pool import ShardJob, write_shards
from data_prep.progress import Progress
from data_prep.publish import publish_split, publish_statistics
from data_prep.shards import ShardContents, ShardPlan, ShardRecord, check_sizes
from data_prep.sources import Source, name_some

logger = logging.getLogger(__name__)


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

    Returns the manifest and how many samples this call has read; progress goes to `stream`.
    It spawns processes, so a script must call it below `if __name__ == "__main__"`.
    Raises `ShardSetError` if the finished shard set that is there is damaged, and
    `ConversionError` if the conversion cannot start or go on; what is finished by then is
    kept, and the same call goes on from there.
    """
    settings = _settings(source, options)
    finished = find_finished(shards, settings)
    if finished is not None:
        for split in finished.splits.values():
            check_shard_sizes(shards, split)
        return finished, 0
    plans = plan_shards(source, options)
    with claim(shards, settings) as records:
        job = ShardJob(
            reader=source.reader,
            shards=shards,
            records=records,
            encoding=options.encoding,
            size=options.size,
        )
        tally, num_read = _write_missing(job, options, plans, stream)
        manifest = _publish(source, shards, options, plans, tally)
        clean_up(shards)
    return manifest, num_read


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
    job: ShardJob, options: Options, plans: Sequence[ShardPlan], stream: TextIO
) -> tuple[_Tally, int]:
    """Write the shards that are not finished; returns what all add up to, and the samples read."""
    tally = _Tally()
    num_samples = sum(len(plan.samples) for plan in plans)
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
    progress = Progress("sharding", "samples", stream, num_before=num_before)

    def show(num_done: int) -> None:
        progress.show(num_before + num_done, num_samples)

    with (
        contextlib.closing(progress),
        contextlib.closing(write_shards(missing, job, options.num_workers, show)) as done,
    ):
        for plan in done:
            tally.add(plan, ShardRecord.load(job.record_path(plan)))
            _check(tally.contents, options, num_samples)
    return tally, num_samples - num_before


def _load_finished(job: ShardJob, plan: ShardPlan) -> ShardRecord | None:
    """The record of a shard that need not be written again; None if either is missing or damaged.

    One with rejected images is written again: they may have been repaired since.
    """
    try:
        record = ShardRecord.load(job.record_path(plan))
        is_whole = (job.shards / plan.filename).stat().st_size == record.num_bytes
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
        return None
    return record if is_whole and not record.contents.rejected else None


def _check(contents: ShardContents, options: Options, num_samples: int) -> None:
    """Stop as soon as it is certain that no shard set can come of it."""
    check_sizes(contents.sizes, options.encoding)
    if len(contents.rejected) > options.max_reject_ratio * num_samples:
        raise ConversionError(
            f"{len(contents.rejected)} of {num_samples} images so far cannot be used, more than "
            f"the allowed share (--max-reject-ratio {options.max_reject_ratio:g}): "
            f"{_name_rejected(contents.rejected)}; repair them and run the same command "
            "again, allow more, or convert without them into a new folder"
        )


def _name_rejected(rejected: Sequence[tuple[str, str]]) -> str:
    """A few rejected images with their reasons."""
    return name_some(f"{locator} ({reason})" for locator, reason in rejected)


def _publish(
    source: Source,
    shards: Path,
    options: Options,
    plans: Sequence[ShardPlan],
    tally: _Tally,
) -> Manifest:
    """Write the indexes, the mean image and, last, the manifest."""
    contents = tally.contents
    has_one_size = len(contents.sizes) == 1
    height, width = next(iter(contents.sizes)) if has_one_size else (None, None)
    if contents.rejected:
        logger.warning("left out: %s", _name_rejected(contents.rejected))
    splits = {}
    for name in source.splits:
        filenames = [plan.filename for plan in plans if plan.split == name]
        records = {filename: tally.records[filename] for filename in filenames}
        splits[name] = publish_split(shards, name, records)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        encoding=options.encoding,
        image_height=height,
        image_width=width,
        class_names=source.class_names,
        class_names_sha256=hash_class_names(source.class_names),
        splits=splits,
        statistics=publish_statistics(shards, contents.pixels, has_one_size=has_one_size),
        source=source.name,
        options=_manifest_options(source, options),
        seed=options.seed,
        rewritten=dict(contents.rewritten),
        rejected=dict(Counter(reason for _, reason in contents.rejected)),
    )
    write_manifest(shards, manifest)
    return manifest
