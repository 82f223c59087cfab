"""Turns a source into a shard set: plans the shards, has them written, publishes the manifest."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from data_prep.convert.assignment import ShardName, Task, assign
from data_prep.convert.changes import Rows, Stamps, check_unchanged, load_stamps
from data_prep.convert.output import ConversionPlan, clean_up, find_finished, locked_output
from data_prep.convert.pool import write_shards
from data_prep.convert.progress import Progress
from data_prep.convert.publish import publish
from data_prep.convert.shard import ShardJob, ShardPlan, ShardRecord, find_record
from data_prep.convert.totals import ConversionTotals
from data_prep.shard_set.manifest import Encoding, Manifest, hash_class_names, manifest_sha256
from data_prep.sources.source import Source

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How to convert; `num_workers`, `max_reject_ratio` and `ignore_changes` do not decide what
    comes out."""

    encoding: Encoding
    size: int | None
    """Height and width to scale and crop to; None keeps the images' own."""
    jpeg_quality: int | None
    """Of images that are encoded anew, 1-100; None with encoding rgb."""
    samples_per_shard: int
    seed: int
    num_workers: int
    max_reject_ratio: float
    """Of all samples of the source; more rejected ones stop the conversion."""
    ignore_changes: bool = False
    """Keep finished shards though images in them were replaced."""
    name: str | None = None
    """What to call the shard set; the manifest alone has it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Work:
    """A conversion, or a task's part of one."""

    source: Source
    shards: Path
    options: Options
    plan: ConversionPlan
    rows: Rows
    """Of all shards, in their order."""
    stream: TextIO


def convert(source: Source, shards: Path, options: Options, stream: TextIO) -> tuple[Manifest, int]:
    """Make the shard set `shards`, or finish the one that was begun there.

    Returns the manifest and how many samples this call has read; progress goes to `stream`.
    It spawns processes, so a script must call it below `if __name__ == "__main__"`.
    Raises `ShardSetError` if the finished shard set that is there is damaged, and
    `ConversionError` if the conversion cannot start or go on; what is finished by then is
    kept, and the same call goes on from there.
    """
    work = _plan(source, shards, options, stream)
    finished = _find_whole(work)
    if finished is not None:
        return finished, 0
    with locked_output(shards, work.plan) as (records, _):
        totals, num_read = _write_missing(work, records, work.plan.shard_names())
        manifest = publish(shards, work.plan, totals)
        clean_up(shards)
    return manifest, num_read


def convert_part(
    source: Source, shards: Path, options: Options, task: Task, stream: TextIO
) -> tuple[int, int]:
    """Write a task's shards of the shard set `shards`, which `merge` publishes when all are there.

    Tasks may run at the same time, on several hosts. Returns how many shards the task has, and
    how many samples this call has read. Otherwise as `convert`.
    """
    work = _plan(source, shards, options, stream)
    names = task.pick(work.plan.shard_names())
    if _find_whole(work) is not None:
        return len(names), 0
    with locked_output(shards, work.plan, task) as (records, _):
        _, num_read = _write_missing(work, records, names)
    return len(names), num_read


def _plan(source: Source, shards: Path, options: Options, stream: TextIO) -> _Work:
    seed, samples_per_shard = options.seed, options.samples_per_shard
    rows = {
        ShardName(split, number): rows
        for split, samples in source.splits.items()
        for number, rows in enumerate(
            assign(samples.keys(), seed=seed, samples_per_shard=samples_per_shard)
        )
    }
    plan = _conversion_plan(source, options)
    return _Work(source=source, shards=shards, options=options, plan=plan, rows=rows, stream=stream)


def _conversion_plan(source: Source, options: Options) -> ConversionPlan:
    """What the conversion makes."""
    return ConversionPlan(
        settings={
            "source": source.name,
            "name": options.name,
            "encoding": options.encoding,
            "seed": options.seed,
            "class_names_sha256": hash_class_names(source.class_names),
            "size": options.size,
            "jpeg_quality": options.jpeg_quality,
            "samples_per_shard": options.samples_per_shard,
            "samples_sha256": _hash_samples(source),
        },
        class_names=source.class_names,
        num_samples={split: len(samples) for split, samples in source.splits.items()},
    )


def _hash_samples(source: Source) -> str:
    """Hash of all keys and labels, whatever the order of the samples."""
    digest = hashlib.sha256()
    for split, samples in source.splits.items():
        for row in samples.rows_by_key():
            sample = samples[row]
            digest.update(f"{split} {sample.key} {sample.label}\n".encode())
    return digest.hexdigest()


def _find_whole(work: _Work) -> Manifest | None:
    """The manifest, if the shard set is finished already."""
    finished = find_finished(work.shards, work.plan.settings)
    if finished and work.source.is_replaceable and not work.options.ignore_changes:
        stamps = load_stamps(work.shards, manifest_sha256(work.shards), work.rows)
        check_unchanged(work.shards, work.source, work.rows, stamps)
    return finished


def _write_missing(
    work: _Work, records: Path, names: Sequence[ShardName]
) -> tuple[ConversionTotals, int]:
    """Write those shards that are not finished; returns their sum, and the samples read."""
    totals = ConversionTotals(work.plan, max_reject_ratio=work.options.max_reject_ratio)
    missing = _count_finished(work, records, names, totals)
    num_samples = sum(len(work.rows[name]) for name in names)
    num_missing = sum(len(work.rows[name]) for name in missing)
    num_before = num_samples - num_missing
    progress = Progress("sharding", "samples", work.stream, num_before=num_before)

    def show(num_done: int) -> None:
        progress.show(num_before + num_done, num_samples)

    def plan(name: ShardName) -> ShardPlan:
        return ShardPlan(name, work.source.pick(name.split, work.rows[name]))

    writing = write_shards(missing, plan, _job(work, records), work.options.num_workers, show)
    with contextlib.closing(progress), contextlib.closing(writing) as done:
        for name in done:
            totals.add(name, ShardRecord.load(records / name.record_filename))
    return totals, num_missing


def _count_finished(
    work: _Work, records: Path, names: Sequence[ShardName], totals: ConversionTotals
) -> list[ShardName]:
    """Add to `totals` what need not be written again; returns the others of `names`.

    Images in finished shards, those of other tasks too, must be what they were.
    """
    missing, own = [], set(names)
    stamps: dict[ShardName, Stamps] = {}
    for name in work.rows:
        record = find_record(work.shards, records, name)
        if record is None or record.contents.rejected:  # they may have been repaired since
            missing.append(name)
            continue
        stamps[name] = record.stamps
        if name in own:
            totals.add(name, record)
    missing = [name for name in missing if name in own]
    if not work.options.ignore_changes:
        check_unchanged(work.shards, work.source, work.rows, stamps)
    if num_finished := len(names) - len(missing):
        logger.info("%d of %d shards are finished already", num_finished, len(names))
    return missing


def _job(work: _Work, records: Path) -> ShardJob:
    return ShardJob(
        reader=work.source.reader,
        shards=work.shards,
        records=records,
        encoding=work.options.encoding,
        size=work.options.size,
        jpeg_quality=work.options.jpeg_quality,
    )
