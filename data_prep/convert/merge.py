"""Publishes what several tasks have converted, from their records alone: it needs no source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_prep.convert.assignment import ShardName, Task
from data_prep.convert.output import (
    ConversionError,
    ConversionPlan,
    clean_up,
    find_divisions,
    find_finished,
    locked_output,
)
from data_prep.convert.publish import publish
from data_prep.convert.shard import find_record
from data_prep.convert.totals import ConversionTotals
from data_prep.shard_set.manifest import Manifest
from data_prep.sources.source import name_some


def merge(shards: Path, *, max_reject_ratio: float) -> Manifest:
    """Make a shard set of the finished shards in the folder `shards`; nothing if it is one already.

    Raises `ConversionError` if any shard is not finished or too many images are rejected, and
    `ShardSetError` if the finished shard set that is there is damaged.
    """
    if (finished := find_finished(shards)) is not None:
        return finished
    with locked_output(shards, None) as (records, plan):
        totals = ConversionTotals(plan, max_reject_ratio=max_reject_ratio)
        missing = []
        for name in plan.shard_names():
            if (record := find_record(shards, records, name)) is None:
                missing.append(name)
            else:
                totals.add(name, record)
        if missing:
            raise ConversionError(_describe(missing, plan, find_divisions(records)))
        manifest = publish(shards, plan, totals)
        clean_up(shards)
    return manifest


def _describe(missing: Sequence[ShardName], plan: ConversionPlan, divisions: Sequence[int]) -> str:
    """Which shards are missing, and what makes them."""
    shards = plan.shard_names()
    how = "without --num-tasks"
    if len(divisions) == 1:
        (num_tasks,) = divisions
        tasks = [
            number
            for number in range(num_tasks)
            if not set(missing).isdisjoint(Task(number, num_tasks).pick(shards))
        ]
        how = f"with --num-tasks {num_tasks} --task {name_some(map(str, tasks))}"
    return (
        f"{len(missing)} of {len(shards)} shards {'is' if len(missing) == 1 else 'are'} missing or "
        f"cut off "
        f"({name_some(name.filename for name in missing)}): run the shard command again {how}"
    )
