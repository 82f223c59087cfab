"""Which shards an order of samples needs and when: what is fetched ahead, and how much must fit.

Pure functions, as in `pipeline.data.order.partition`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.shard_set.manifest import Split
from pipeline.data.order.partition import BatchPlan, Indices, epoch_order


@dataclass(frozen=True, slots=True)
class ShardNeed:
    """The positions of a sequence of samples between which a shard is needed, both included."""

    shard: int
    first: int
    last: int


def shard_needs(samples: Indices, shard_lengths: Sequence[int]) -> list[ShardNeed]:
    """The shards that hold `samples`, in the order in which they are first needed."""
    ends, positions = np.cumsum(shard_lengths), np.arange(len(samples))
    shards = np.searchsorted(ends, samples, side="right")
    first, last = np.full(len(ends), len(samples)), np.full(len(ends), -1)
    np.minimum.at(first, shards, positions)
    np.maximum.at(last, shards, positions)
    needed = np.flatnonzero(last >= 0)
    by_first = needed[np.argsort(first[needed])]
    rows = zip(by_first.tolist(), first[by_first].tolist(), last[by_first].tolist(), strict=True)
    return [ShardNeed(*row) for row in rows]


def run_position(plan: BatchPlan, step: int) -> int:
    """Where the step begins in the sequence of the samples of all epochs."""
    epoch = plan.epoch_of(step)
    return epoch * plan.num_samples + plan.positions(step, 0, 0).start


def training_needs(
    plan: BatchPlan, shard_lengths: Sequence[int], seed: int, start_step: int, end_step: int
) -> Iterator[ShardNeed]:
    """What the steps from `start_step` up to `end_step` need, in positions of `run_position`.

    A shard is listed once for every epoch that needs it; epochs are computed when they are due.
    """
    step = start_step
    while step < end_step:
        epoch = plan.epoch_of(step)
        stop = min(end_step, (epoch + 1) * plan.steps_per_epoch)
        begin = plan.positions(step, 0, 0).start
        end = plan.positions(stop - 1, 0, 0).start + plan.samples_in_step(stop - 1)
        offset = epoch * plan.num_samples + begin
        order = epoch_order(plan.num_samples, seed, epoch, plan.shuffle)
        for need in shard_needs(order[begin:end], shard_lengths):
            yield ShardNeed(need.shard, offset + need.first, offset + need.last)
        step = stop


def stretch_needs(shard_lengths: Sequence[int], samples: range) -> Iterator[ShardNeed]:
    """What reading a stretch of a split from first to last needs; positions are samples."""
    for need in shard_needs(np.arange(samples.start, samples.stop), shard_lengths):
        yield ShardNeed(need.shard, samples.start + need.first, samples.start + need.last)


def shards_at_once(plan: BatchPlan, num_positions: int) -> int:
    """The most shards that `num_positions` neighbouring positions of any epochs' orders touch.

    Only for a plan with a `ShardShuffle`. They touch whole windows of it, and at an epoch's end a
    smaller one: of the shards that are left over, or cut short by samples that are left out.
    """
    assert plan.shuffle is not None
    lengths, width = plan.shuffle.shard_lengths, plan.shuffle.num_shards
    smallest = max(1, sum(sorted(lengths)[:width]) - plan.dropped_samples)
    num_windows = 2 + max(0, num_positions - 2) // smallest
    return min(len(lengths), num_windows * width + len(lengths) % width)


def check_cache_bytes(
    max_bytes: int, plan: BatchPlan, train: Split, val: Split, train_ahead: int, val_ahead: int
) -> None:
    """Raise `ValueError` if a cache of `max_bytes` cannot hold what is needed at one time.

    `train_ahead` and `val_ahead` are samples between the oldest that a rank may still read and the
    newest that another asks for already. Shards of both splits stay while `val` is evaluated.
    """
    num_train = len(train.shard_bytes)
    if plan.shuffle is not None:
        num_train = shards_at_once(plan, train_ahead)
    train_bytes = sum(sorted(train.shard_bytes)[-num_train:])
    val_bytes = _neighbouring_bytes(val, val_ahead)
    if train_bytes + val_bytes > max_bytes:
        width = "none" if plan.shuffle is None else plan.shuffle.num_shards
        raise ValueError(
            f"data.cache_bytes is {max_bytes:,}, but up to {num_train} of the "
            f"{len(train.shard_bytes)} shards of train are needed at one time, {train_bytes:,} "
            f"bytes (data.shuffle_shards is {width}), beside {val_bytes:,} bytes of val; set "
            f"--data.cache_bytes to {train_bytes + val_bytes:,} or more, or "
            f"{'set' if plan.shuffle is None else 'lower'} --data.shuffle_shards"
        )


def check_resident_cache_bytes(
    max_bytes: int, train: Split, val: Split, num_ranks: int, train_ahead: int, val_ahead: int
) -> None:
    """The same for a resident split: each rank of a host reads a stretch of it once, in order."""
    train_bytes = num_ranks * _neighbouring_bytes(train, train_ahead)
    needed = max(train_bytes, _neighbouring_bytes(val, val_ahead))
    if needed > max_bytes:
        raise ValueError(
            f"data.cache_bytes is {max_bytes:,}, but the {num_ranks} ranks of a host need "
            f"{needed:,} bytes of shards at one time; set --data.cache_bytes to that or more"
        )


def _neighbouring_bytes(split: Split, num_positions: int) -> int:
    """The most bytes of shards that `num_positions` neighbouring samples of the split touch."""
    ends = np.cumsum(split.shard_lengths)
    # The maximum begins with the last sample of a shard.
    last = np.searchsorted(ends, ends - 1 + max(1, num_positions) - 1, side="right")
    bytes_before = np.concatenate([[0], np.cumsum(split.shard_bytes)])
    until = np.minimum(last + 1, len(ends))
    return int((bytes_before[until] - bytes_before[:-1]).max())
