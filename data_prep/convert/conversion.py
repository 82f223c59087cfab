"""Turns a source into a shard set: plans the shards, has them written, publishes them."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
from collections.abc import Collection
from pathlib import Path
from typing import TextIO

from data_prep.convert.assignment import ShardName, assign
from data_prep.convert.changes import Rows, Stamps, check_unchanged, load_stamps
from data_prep.convert.metrics import Done, publishing
from data_prep.convert.options import Options, shard_job
from data_prep.convert.output import (
    ConversionError,
    ConversionPlan,
    begun_plan,
    begun_tasks,
    find_finished,
    locked_output,
)
from data_prep.convert.pool import write_shards
from data_prep.convert.publish import ConversionTotals, publish
from data_prep.convert.shard import ShardJob, find_record
from data_prep.shard_set.fields import name_some
from data_prep.shard_set.manifest import (
    Manifest,
    hash_class_names,
    manifest_sha256,
)
from data_prep.shard_set.progress import Progress
from data_prep.sources.source import Source

_log = logging.getLogger(__name__)


def convert(source: Source, options: Options, stream: TextIO) -> tuple[Manifest | None, int, int]:
    """Make the shard set `options.shards`, or a task's part of it, or finish what was begun there.

    Returns the manifest (None before `merge`), the number of shards asked for, and how many samples
    this call has read. Progress goes to `stream`.
    It spawns processes, so a script must call it below `if __name__ == "__main__"`.
    Raises `ShardSetError` if a finished shard set is there and damaged, and `ConversionError` if
    the conversion cannot start or go on. The same call then goes on from what is finished.
    """
    shards, task = options.shards, options.part
    job = shard_job(source, options)
    plan = _plan(source, options, job)
    parts = (
        assign(samples.keys(), seed=options.seed, samples_per_shard=options.samples_per_shard)
        for samples in source.splits.values()
    )
    rows = dict(zip(plan.shard_names(), itertools.chain.from_iterable(parts), strict=True))
    own = list(rows) if task is None else task.pick(list(rows))
    if (finished := find_finished(shards, plan.settings)) is not None:
        if not options.ignore_changes:
            stamps = load_stamps(shards, manifest_sha256(shards), rows)
            check_unchanged(shards, source, rows, stamps)
        return finished, len(own), 0
    published = publishing(options.metrics_dir, shards, task)
    with locked_output(shards, plan, task), published as metrics:
        totals = ConversionTotals(plan, max_reject_ratio=options.max_reject_ratio)
        stamps = _add_finished(totals, shards, rows, set(own))
        if not options.ignore_changes:
            check_unchanged(shards, source, rows, stamps)
        if totals.records:
            _log.info("%d of %d shards are finished already", len(totals.records), len(own))
        num_samples = sum(len(rows[name]) for name in own)
        missing = [name for name in own if name not in totals.records]
        num_missing = sum(len(rows[name]) for name in missing)
        num_before = num_samples - num_missing
        metrics.begin(num_missing)
        if missing and source.prepare is not None:
            unpacking = Progress("unpacking", "files", stream)
            with metrics.stage("unpack"), contextlib.closing(unpacking):
                source.prepare(options.workers, unpacking.show)
        progress = Progress("sharding", "samples", stream, num_before=num_before)

        def show(done: Done) -> None:
            progress.show(num_before + done.total(), num_samples)
            metrics.show(done)

        writing = write_shards(
            missing,
            lambda name: source.pick(name.split, rows[name]),
            job,
            options.workers,
            show,
        )
        with contextlib.closing(progress), contextlib.closing(writing):
            for name, record, seconds in writing:
                metrics.add_shard(record.num_bytes, seconds)
                totals.add(name, record)
        with metrics.stage("publish"):
            manifest = publish(shards, plan, totals) if task is None else None
    return manifest, len(own), num_missing


def merge(shards: Path, *, max_reject_ratio: float) -> Manifest:
    """Publish the shards that tasks have made, if that was not done yet; it needs no source.

    Raises `ConversionError` if a shard is not finished or too many images are rejected, and
    `ShardSetError` if a finished shard set is there and damaged.
    """
    if (finished := find_finished(shards)) is not None:
        return finished
    if (plan := begun_plan(shards)) is None:
        raise ConversionError(
            f"{shards} holds no unfinished conversion: run 'python -m data_prep shard' first"
        )
    with locked_output(shards, plan):
        totals = ConversionTotals(plan, max_reject_ratio=max_reject_ratio)
        missing = {}
        for number, name in enumerate(plan.shard_names()):
            if (record := find_record(shards, name)) is None:
                missing[number] = name.filename
            else:
                totals.add(name, record)
        if missing:
            counts = {task.num_tasks for task in begun_tasks(shards)}
            how = "without --num-tasks"
            if len(counts) == 1:
                (num_tasks,) = counts
                tasks = {str(number % num_tasks) for number in missing}
                how = f"with --num-tasks {num_tasks} --task {name_some(tasks)}"
            raise ConversionError(
                f"{shards} lacks {len(missing)} of {len(plan.shard_names())} shards, or they are "
                f"cut off ({name_some(missing.values())}): run the shard command again {how}"
            )
        return publish(shards, plan, totals)


def _plan(source: Source, options: Options, job: ShardJob) -> ConversionPlan:
    samples_hash = hashlib.sha256()  # of all keys and labels, in the order of keys
    for split, samples in source.splits.items():
        for row in samples.rows_by_key():
            sample = samples[row]
            samples_hash.update(f"{split} {sample.key} {sample.label}\n".encode())
    return ConversionPlan(
        settings={
            "source": source.name,
            "name": options.name,
            "encoding": job.encoding,
            "seed": options.seed,
            "class_names_sha256": hash_class_names(source.class_names),
            "size": job.size,
            "jpeg_quality": job.jpeg_quality,
            **({"restart": job.restart} if job.restart else {}),  # older versions wrote none
            "samples_per_shard": options.samples_per_shard,
            "samples_sha256": samples_hash.hexdigest(),
            **source.selection,
        },
        class_names=source.class_names,
        num_samples={split: len(samples) for split, samples in source.splits.items()},
    )


def _add_finished(
    totals: ConversionTotals, shards: Path, rows: Rows, own: Collection[ShardName]
) -> dict[ShardName, Stamps]:
    """Add the finished shards among `own` to `totals`; returns the stamps of all finished ones."""
    stamps = {}
    for name in rows:
        record = find_record(shards, name)
        if record is None or record.contents.rejected:  # they may have been repaired since
            continue
        stamps[name] = record.stamps
        if name in own:
            totals.add(name, record)
    return stamps
