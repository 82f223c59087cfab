"""Who reads which sample, for every number of ranks."""

from __future__ import annotations

import hashlib
import itertools
import tracemalloc
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.order.partition import BatchPlan, ShardShuffle, epoch_order, sample_blocks

WORLD_SIZES = range(1, 65)

IMAGENET_SAMPLES = 1_281_167

numbers_of_ranks = st.integers(1, 64)
accumulations = st.integers(1, 5)


def make_plan(num_samples: int, global_batch_size: int, **changes: Any) -> BatchPlan:
    settings = {"num_replicas": 1, "accumulation_steps": 1, "drop_last": False} | changes
    return BatchPlan(num_samples=num_samples, global_batch_size=global_batch_size, **settings)


def micro_batches(plan: BatchPlan, step: int) -> list[range]:
    """The positions of all ranks' micro-batches of a step."""
    return [
        plan.positions(step, micro_batch, rank)
        for micro_batch in range(plan.accumulation_steps)
        for rank in range(plan.num_replicas)
    ]


def step_positions(plan: BatchPlan, step: int) -> list[int]:
    return list(itertools.chain.from_iterable(micro_batches(plan, step)))


def epoch_positions(plan: BatchPlan) -> list[int]:
    steps = range(plan.steps_per_epoch)
    return list(itertools.chain.from_iterable(step_positions(plan, step) for step in steps))


@st.composite
def plans(draw: st.DrawFn, drop_last: bool) -> BatchPlan:
    world_size, accumulation = draw(numbers_of_ranks), draw(accumulations)
    parts = world_size * accumulation
    full_steps, local = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    last = draw(st.just(0) | st.integers(0 if drop_last else parts, max(parts, parts * local - 1)))
    return make_plan(
        full_steps * parts * local + last % (parts * local),
        parts * local,
        num_replicas=world_size,
        accumulation_steps=accumulation,
        drop_last=drop_last,
    )


@given(plan=plans(drop_last=False))
def test_an_epoch_has_each_sample_once(plan: BatchPlan) -> None:
    assert epoch_positions(plan) == list(range(plan.num_samples))
    assert plan.dropped_samples == 0


@given(plan=plans(drop_last=True))
def test_an_epoch_without_its_ragged_batch_has_whole_steps_only(plan: BatchPlan) -> None:
    assert epoch_positions(plan) == list(range(plan.num_samples - plan.dropped_samples))
    assert plan.dropped_samples == plan.num_samples % plan.global_batch_size
    sizes = {
        len(part) for step in range(plan.steps_per_epoch) for part in micro_batches(plan, step)
    }
    assert sizes == {plan.local_batch_size}


@given(plan=plans(drop_last=False))
def test_every_rank_has_work_in_every_step(plan: BatchPlan) -> None:
    """So none leaves early and none waits for it for ever."""
    for step in range(plan.steps_per_epoch):
        sizes = [len(part) for part in micro_batches(plan, step)]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= plan.local_batch_size
        assert sum(sizes) == plan.samples_in_step(step)


@pytest.mark.parametrize("drop_last", [True, False])
def test_a_step_has_the_same_samples_on_any_number_of_ranks(drop_last: bool) -> None:
    global_batch_size = 2 * 960
    one = make_plan(2 * global_batch_size + 777, global_batch_size, drop_last=drop_last)
    expected = [step_positions(one, step) for step in range(one.steps_per_epoch)]
    for world_size, accumulation in itertools.product(WORLD_SIZES, (1, 2, 3)):
        if global_batch_size % (world_size * accumulation):
            continue
        plan = make_plan(
            one.num_samples,
            global_batch_size,
            num_replicas=world_size,
            accumulation_steps=accumulation,
            drop_last=drop_last,
        )
        assert plan.steps_per_epoch == one.steps_per_epoch
        assert [step_positions(plan, step) for step in range(plan.steps_per_epoch)] == expected


def test_micro_batches_come_before_ranks() -> None:
    """A rank's first micro-batch is from the first half of the step, as the module draws it."""
    plan = make_plan(16, 8, num_replicas=2, accumulation_steps=2)
    assert micro_batches(plan, 1) == [range(8, 10), range(10, 12), range(12, 14), range(14, 16)]


def test_steps_go_on_into_the_next_epoch() -> None:
    plan = make_plan(10, 4, num_replicas=2)
    assert plan.steps_per_epoch == 3
    assert [plan.epoch_of(step) for step in (0, 2, 3, 5, 6)] == [0, 0, 1, 1, 2]
    assert step_positions(plan, 4) == step_positions(plan, 1)
    assert [plan.samples_in_step(step) for step in (3, 4, 5)] == [4, 4, 2]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"num_samples": 1000, "global_batch_size": 100, "num_replicas": 8},
            "global_batch_size 100 cannot be divided among 8 replicas × 1 accumulation steps; "
            "use a multiple of 8, such as 96 or 104",
        ),
        (
            {"num_samples": 1000, "global_batch_size": 5, "accumulation_steps": 8},
            "use a multiple of 8, such as 8",
        ),
        (
            {"num_samples": 100, "global_batch_size": 128, "drop_last": True, "num_replicas": 8},
            "global_batch_size 128 is more than the split's 100 samples; use at most 96",
        ),
        (
            {"num_samples": 5, "global_batch_size": 8, "drop_last": True, "num_replicas": 8},
            "the split has 5 samples; expected at least 8",
        ),
        (
            {"num_samples": 131, "global_batch_size": 128, "num_replicas": 4},
            "the epoch's last batch of 3 samples leaves some of 4 replicas",
        ),
    ],
)
def test_impossible_arithmetic_is_explained(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^.+; .+$") as error:
        make_plan(**changes)
    assert sentence in str(error.value)


@settings(max_examples=25)  # each over 64 world sizes
@given(num_samples=st.integers(0, 500), block_size=st.integers(1, 60))
def test_evaluation_sees_each_sample_once_in_the_same_block(
    num_samples: int, block_size: int
) -> None:
    samples = range(num_samples)
    whole = sample_blocks(samples, block_size)
    assert list(itertools.chain.from_iterable(whole)) == list(samples)
    assert all(1 <= len(block) <= block_size for block in whole)
    for world_size in WORLD_SIZES:
        shares = [
            sample_blocks(samples, block_size, world_size, rank) for rank in range(world_size)
        ]
        assert Counter(itertools.chain.from_iterable(shares)) == Counter(whole)
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1


@given(num_samples=st.integers(0, 300), seed=st.integers(0, 99), epoch=st.integers(0, 99))
def test_the_order_is_a_permutation(num_samples: int, seed: int, epoch: int) -> None:
    order = epoch_order(num_samples, seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(num_samples))
    assert np.array_equal(order, epoch_order(num_samples, seed, epoch))


def test_the_order_of_a_run_never_changes() -> None:
    """A resumed run must go on in the order it began with, whatever version resumes it."""
    assert epoch_order(10, seed=1, epoch=2).tolist() == [9, 1, 6, 0, 4, 2, 7, 8, 5, 3]


def test_epochs_and_seeds_have_different_orders() -> None:
    orders = [epoch_order(10_000, seed, epoch) for seed in range(3) for epoch in range(10)]
    for first, second in itertools.combinations(orders, 2):
        # Two random permutations agree in one place on average; in ten once in 10 million times.
        assert np.count_nonzero(first == second) < 10


def test_all_permutations_are_equally_likely() -> None:
    counts = Counter(tuple(epoch_order(4, seed=0, epoch=epoch)) for epoch in range(9600))
    assert len(counts) == 24
    deviations = (np.array(list(counts.values())) - 400) / np.sqrt(400)
    assert np.sum(deviations**2) < 60  # chi-squared with 23 degrees of freedom: p = 4e-5


def test_batches_of_a_split_sorted_by_class_hold_all_classes() -> None:
    labels = np.repeat(np.arange(10), 5000)
    shuffled = labels[epoch_order(len(labels), seed=0, epoch=0)]
    entropies = []
    for batch in shuffled[: 390 * 128].reshape(-1, 128):
        shares = np.bincount(batch, minlength=10) / 128
        shares = shares[shares > 0]
        entropies.append(-(shares * np.log(shares)).sum() / np.log(10))
    # Of 128 independent draws from ten classes it is 1 − 9 / (2 · 128 · ln 10) on average.
    assert np.mean(entropies) == pytest.approx(1 - 9 / (256 * np.log(10)), abs=0.002)


def test_neighbours_are_torn_apart() -> None:
    num_samples = 50_000
    order = epoch_order(num_samples, seed=0, epoch=0)
    distance = np.abs(np.diff(order)).mean() / num_samples
    assert distance == pytest.approx(1 / 3, abs=0.01)  # of two uniform numbers
    assert abs(np.corrcoef(order, np.arange(num_samples))[0, 1]) < 5 / np.sqrt(num_samples)


@pytest.mark.parametrize(
    ("num_samples", "seed", "epoch", "sha256"),
    [
        (
            IMAGENET_SAMPLES,
            3,
            5,
            "be738e560617b36612dca51c8ce975085e1e1457393c666871a8faf134cb3502",
        ),
        (50_000, 0, 7, "4d3fd535cd4b750e1952d44b0b4ef39ff829f8dcb9f6761884ecf6aa7e35c67f"),
    ],
)
def test_the_order_of_large_splits_never_changes(
    num_samples: int, seed: int, epoch: int, sha256: str
) -> None:
    order = epoch_order(num_samples, seed, epoch)
    assert hashlib.sha256(order.tobytes()).hexdigest() == sha256


shuffles = st.builds(
    ShardShuffle,
    st.lists(st.integers(1, 9), min_size=1, max_size=12).map(tuple),
    st.integers(1, 13),
)


def windows(order: list[int], shuffle: ShardShuffle) -> list[list[int]]:
    """The shards of each window of the order, after a check that it has all of their samples."""
    owners = np.repeat(np.arange(len(shuffle.shard_lengths)), shuffle.shard_lengths)
    found: list[list[int]] = []
    rest = order
    for _ in range(-(-len(shuffle.shard_lengths) // shuffle.num_shards)):
        seen = list(dict.fromkeys(owners[rest].tolist()))[: shuffle.num_shards]
        size = sum(shuffle.shard_lengths[shard] for shard in seen)
        assert set(owners[rest[:size]].tolist()) == set(seen)
        found.append(sorted(seen))
        rest = rest[size:]
    assert rest == []
    return found


@given(shuffle=shuffles, seed=st.integers(0, 99), epoch=st.integers(0, 99))
def test_some_shards_at_a_time_are_read_completely(
    shuffle: ShardShuffle, seed: int, epoch: int
) -> None:
    num_samples = sum(shuffle.shard_lengths)
    order = epoch_order(num_samples, seed, epoch, shuffle)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(num_samples))
    assert np.array_equal(order, epoch_order(num_samples, seed, epoch, shuffle))
    in_windows = windows(order.tolist(), shuffle)
    assert sorted(itertools.chain.from_iterable(in_windows)) == list(
        range(len(shuffle.shard_lengths))
    )
    assert all(len(window) == shuffle.num_shards for window in in_windows[:-1])


@given(shuffle=shuffles, seed=st.integers(0, 99), epoch=st.integers(0, 99))
def test_all_shards_at_a_time_are_all_samples_at_once(
    shuffle: ShardShuffle, seed: int, epoch: int
) -> None:
    lengths = shuffle.shard_lengths
    whole = ShardShuffle(lengths, len(lengths) + shuffle.num_shards - 1)
    order = epoch_order(sum(lengths), seed, epoch, whole)
    assert np.array_equal(order, epoch_order(sum(lengths), seed, epoch))


def test_all_orders_of_shards_and_of_their_samples_are_equally_likely() -> None:
    """Two shards of two samples each, one at a time: 2 · 2 · 2 orders."""
    shuffle = ShardShuffle((2, 2), 1)
    counts = Counter(tuple(epoch_order(4, 0, epoch, shuffle).tolist()) for epoch in range(3200))
    assert len(counts) == 8
    deviations = (np.array(list(counts.values())) - 400) / np.sqrt(400)
    assert np.sum(deviations**2) < 29  # chi-squared with 7 degrees of freedom: p = 1e-4


def test_every_epoch_groups_the_shards_anew() -> None:
    shuffle = ShardShuffle((5,) * 40, 4)
    groups = [
        {tuple(window) for window in windows(epoch_order(200, 0, epoch, shuffle).tolist(), shuffle)}
        for epoch in range(5)
    ]
    for first, second in itertools.combinations(groups, 2):
        assert len(first & second) <= 1


def test_the_order_of_shards_never_changes() -> None:
    order = epoch_order(10, seed=1, epoch=2, shuffle=ShardShuffle((3, 3, 3, 1), 2))
    assert order.tolist() == [1, 0, 4, 2, 5, 3, 9, 6, 7, 8]


@pytest.mark.parametrize("num_shards", [None, 16])
def test_an_order_takes_little_more_memory_than_its_result(num_shards: int | None) -> None:
    lengths = (*[1250] * 1024, IMAGENET_SAMPLES - 1250 * 1024)
    shuffle = None if num_shards is None else ShardShuffle(lengths, num_shards)
    tracemalloc.start()
    order = epoch_order(IMAGENET_SAMPLES, 0, 0, shuffle)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - order.nbytes < 30e6
