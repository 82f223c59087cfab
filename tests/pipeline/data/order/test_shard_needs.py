"""When shards are needed, against orders that are walked sample by sample."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.shard_set.manifest import Split
from pipeline.data.batches.loader import training_requests
from pipeline.data.order.partition import BatchPlan, ShardShuffle
from pipeline.data.order.shard_needs import (
    ShardNeed,
    check_cache_bytes,
    run_position,
    shard_needs,
    shards_at_once,
    stretch_needs,
    training_needs,
)

lengths_of_shards = st.lists(st.integers(1, 9), min_size=1, max_size=10).map(tuple)


def owners_of(lengths: tuple[int, ...]) -> list[int]:
    """The shard of every sample."""
    return np.repeat(np.arange(len(lengths)), lengths).tolist()


@st.composite
def plans(draw: st.DrawFn) -> BatchPlan:
    lengths = draw(lengths_of_shards)
    return BatchPlan(
        num_samples=sum(lengths),
        global_batch_size=draw(st.integers(1, sum(lengths))),
        num_replicas=1,
        accumulation_steps=1,
        drop_last=draw(st.booleans()),
        shuffle=ShardShuffle(lengths, draw(st.integers(1, 11))),
    )


def make_split(lengths: tuple[int, ...], sizes: tuple[int, ...]) -> Split:
    return Split(
        name="train",
        num_samples=sum(lengths),
        filenames=("",) * len(lengths),
        shard_lengths=lengths,
        shard_bytes=sizes,
        shard_sha256=("",) * len(lengths),
        index_filename="",
        index_sha256="",
    )


@given(lengths=lengths_of_shards, data=st.data())
def test_needs_are_from_the_first_sample_to_the_last(
    lengths: tuple[int, ...], data: st.DataObject
) -> None:
    owners = owners_of(lengths)
    samples = data.draw(st.lists(st.integers(0, len(owners) - 1), max_size=30))
    places: dict[int, list[int]] = {}
    for position, sample in enumerate(samples):
        places.setdefault(owners[sample], []).append(position)
    expected = [ShardNeed(shard, found[0], found[-1]) for shard, found in places.items()]
    assert shard_needs(np.array(samples, np.int64), lengths) == expected


def test_needs_of_many_samples_are_found_block_by_block() -> None:
    lengths = (70_000, 70_000)
    order = np.concatenate([np.arange(70_001), np.arange(70_001, 140_000)])
    assert shard_needs(order, lengths) == [ShardNeed(0, 0, 69_999), ShardNeed(1, 70_000, 139_999)]
    back = shard_needs(order[::-1].copy(), lengths)
    assert back == [ShardNeed(1, 0, 69_999), ShardNeed(0, 70_000, 139_999)]


@given(plan=plans(), start_step=st.integers(0, 6), num_steps=st.integers(0, 6))
def test_the_needs_of_training_are_those_of_its_requests(
    plan: BatchPlan, start_step: int, num_steps: int
) -> None:
    assert plan.shuffle is not None
    owners = owners_of(plan.shuffle.shard_lengths)
    end_step = start_step + num_steps
    needs = list(training_needs(plan, plan.shuffle.shard_lengths, 3, start_step, end_step))
    requests = training_requests(plan, 3, start_step, end_step)
    wanted: dict[tuple[int, int], list[int]] = {}
    for step, (request,) in zip(range(start_step, end_step), requests, strict=True):
        assert request.position == run_position(plan, step)
        for position, sample in enumerate(request.samples.tolist(), request.position):
            wanted.setdefault((plan.epoch_of(step), owners[sample]), []).append(position)
    assert needs == [
        ShardNeed(shard, positions[0], positions[-1]) for (_, shard), positions in wanted.items()
    ]


@pytest.mark.slow
@given(plan=plans(), num_positions=st.integers(1, 100))
def test_never_more_shards_at_once(plan: BatchPlan, num_positions: int) -> None:
    assert plan.shuffle is not None
    owners = owners_of(plan.shuffle.shard_lengths)
    requests = training_requests(plan, 0, 0, 4 * plan.steps_per_epoch)
    sequence = [owners[sample] for (request,) in requests for sample in request.samples]
    needs: list[ShardNeed] = []
    for step in range(0, 4 * plan.steps_per_epoch, plan.steps_per_epoch):
        needs += training_needs(
            plan, plan.shuffle.shard_lengths, 0, step, step + plan.steps_per_epoch
        )
    dropped = plan.dropped_samples
    at_once = 0
    for begin in range(max(1, len(sequence) - num_positions + 1)):
        # Positions of the run count what an epoch leaves out.
        first, last = (
            place + dropped * (place // (plan.num_samples - dropped))
            for place in (begin, min(begin + num_positions, len(sequence)) - 1)
        )
        alive = {need.shard for need in needs if need.first <= last and need.last >= first}
        at_once = max(at_once, len(alive))
    assert at_once <= shards_at_once(plan, num_positions)


def test_two_windows_are_needed_where_they_meet() -> None:
    plan = BatchPlan(
        num_samples=800,
        global_batch_size=10,
        num_replicas=1,
        accumulation_steps=1,
        drop_last=True,
        shuffle=ShardShuffle((100,) * 8, 2),
    )
    assert [shards_at_once(plan, positions) for positions in (1, 201, 202, 402)] == [4, 4, 6, 8]


def test_a_stretch_needs_one_shard_after_another() -> None:
    assert list(stretch_needs((3, 2, 4), range(1, 9))) == [
        ShardNeed(0, 1, 2),
        ShardNeed(1, 3, 4),
        ShardNeed(2, 5, 8),
    ]


def test_a_cache_that_is_too_small_is_refused_with_the_arithmetic() -> None:
    train = make_split((100,) * 8, (1000, 1000, 1000, 1500, 1000, 1000, 1000, 700))
    val = make_split((10, 10, 4), (300, 200, 100))
    plan = BatchPlan(
        num_samples=800,
        global_batch_size=10,
        num_replicas=1,
        accumulation_steps=1,
        drop_last=True,
        shuffle=ShardShuffle(train.shard_lengths, 2),
    )
    check_cache_bytes(4500 + 500, plan, train, val, 50, 2)
    with pytest.raises(ValueError, match=r"^.+$") as error:
        check_cache_bytes(4999, plan, train, val, 50, 2)
    assert str(error.value) == (
        "data.cache_bytes is 4,999, but up to 4 of the 8 shards of train are needed at one time, "
        "4,500 bytes (data.shuffle_shards is 2), beside 500 bytes of val; set --data.cache_bytes "
        "to 5,000 or more, or lower --data.shuffle_shards"
    )
    check_cache_bytes(4500 + 600, plan, train, val, 50, 12)
    at_once = dataclasses.replace(plan, shuffle=None)
    with pytest.raises(ValueError, match=r"up to 8 of the 8 shards .+shuffle_shards is none\)"):
        check_cache_bytes(8199 + 499, at_once, train, val, 50, 2)
    check_cache_bytes(8200 + 500, at_once, train, val, 50, 2)


@given(lengths=lengths_of_shards, ahead=st.integers(1, 40), data=st.data())
def test_room_for_evaluation_is_that_of_neighbouring_shards(
    lengths: tuple[int, ...], ahead: int, data: st.DataObject
) -> None:
    sizes = tuple(data.draw(st.integers(1, 100)) for _ in lengths)
    owners = owners_of(lengths)
    most = max(
        sum(sizes[shard] for shard in set(owners[at : at + ahead])) for at in range(len(owners))
    )
    train = make_split((1,), (5,))
    plan = BatchPlan(
        num_samples=1, global_batch_size=1, num_replicas=1, accumulation_steps=1, drop_last=True
    )
    val = make_split(lengths, sizes)
    check_cache_bytes(5 + most, plan, train, val, 1, ahead)
    with pytest.raises(ValueError, match="beside"):
        check_cache_bytes(4 + most, plan, train, val, 1, ahead)
