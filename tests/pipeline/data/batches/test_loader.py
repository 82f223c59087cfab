"""Reading ahead: order, padding, errors, the life of buffers, and closing at any moment."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.batches.loader import (
    Batch,
    Loader,
    Request,
    block_requests,
    training_requests,
)
from pipeline.data.order.partition import (
    BatchPlan,
    Indices,
    ShardShuffle,
    epoch_order,
    sample_blocks,
)
from pipeline.data.readers.file_reader import FileReader
from pipeline.data.readers.sample_index import ReadCost
from tests.machine import DEADLINE_SECONDS, wait_until

AT_ONCE = pytest.mark.parametrize("at_once", [1, 3])
"""Batches that the reader reads at the same time."""


class FakeReader(FileReader):
    """Every pixel of an image is its sample number; `gate` holds up reading while it is cleared."""

    num_samples = 100
    image_shape = (2, 2, 3)

    def __init__(self, broken_sample: int = -1, batches_at_once: int = 1) -> None:
        self.batches_at_once = batches_at_once
        self.gate = threading.Event()
        self.gate.set()
        self.num_reads = 0
        self._counting = threading.Lock()
        self.has_begun = threading.Event()
        self._broken_sample = broken_sample

    def read(
        self, samples: Indices, epoch: int, images: npt.NDArray[np.uint8]
    ) -> tuple[Indices, ReadCost, None]:
        with self._counting:
            self.num_reads += 1
        self.has_begun.set()
        assert self.gate.wait(DEADLINE_SECONDS)
        if self._broken_sample in samples:
            raise ValueError(f"sample {self._broken_sample} is broken")
        images[: len(samples)] = samples[:, None, None, None]
        cost = ReadCost(len(samples), 10 * len(samples), 0.25, 0.5)
        return (samples + epoch) % 10, cost, None

    def close(self) -> None: ...


class FakeEvent:
    """A CUDA event that happens when the test says so."""

    def __init__(self) -> None:
        self.is_waited_for = threading.Event()
        self.happens = threading.Event()

    def synchronize(self) -> None:
        self.is_waited_for.set()
        assert self.happens.wait(DEADLINE_SECONDS)


def requests(*sizes: int) -> Iterator[Request]:
    """Consecutive sample numbers in groups of these sizes."""
    starts = itertools.accumulate(sizes, initial=0)
    return (
        Request(np.arange(start, start + size), start % 3)
        for start, size in zip(starts, sizes, strict=False)
    )


def make_loader(
    reader: FakeReader, sizes: Sequence[int], *, depth: int = 2, pad: bool = False
) -> Loader:
    return Loader(reader, requests(*sizes), batch_size=4, depth=depth, pad=pad)


def pixels(batch: Batch) -> list[int]:
    """One number an image, after checking that all its pixels are equal."""
    flat = batch.images.flatten(1)
    assert torch.equal(flat, flat[:, :1].expand_as(flat))
    return [int(value) for value in flat[:, 0]]


def in_time(action: Callable[[], object]) -> None:
    """Run `action` and fail, instead of waiting for ever, if it hangs."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive(), "it hangs"


@pytest.mark.slow
@given(
    sizes=st.lists(st.integers(1, 4), max_size=12),
    depth=st.integers(1, 5),
    pad=st.booleans(),
    at_once=st.integers(1, 4),
)
def test_batches_come_in_the_order_of_the_requests(
    sizes: list[int], depth: int, pad: bool, at_once: int
) -> None:
    reader = FakeReader(batches_at_once=at_once)
    with closing(make_loader(reader, sizes, depth=depth, pad=pad)) as loader:
        for (samples, epoch, _), batch in zip(requests(*sizes), loader, strict=True):
            missing = 4 - len(samples) if pad else 0
            assert batch.num_valid == len(samples)
            assert pixels(batch) == [*samples, *[0] * missing]
            assert batch.images.shape == (len(samples) + missing, 2, 2, 3)
            assert batch.samples.tolist() == [*samples, *[samples[-1]] * missing]
            assert batch.labels.tolist() == [(sample + epoch) % 10 for sample in batch.samples]
            assert batch.labels.dtype == torch.int64


def test_padding_is_black_after_a_full_batch_in_the_same_buffer() -> None:
    with closing(make_loader(FakeReader(), (4, 4, 4, 1), depth=1, pad=True)) as loader:
        *_, last = loader
        assert pixels(last) == [12, 0, 0, 0]


@AT_ONCE
def test_an_exhausted_loader_stays_so(at_once: int) -> None:
    with closing(make_loader(FakeReader(batches_at_once=at_once), (4, 2))) as loader:
        assert len(list(loader)) == 2
        for _ in range(3):
            with pytest.raises(StopIteration):
                next(loader)
        assert loader.queued_batches == 0


@AT_ONCE
def test_an_error_is_raised_where_the_batch_would_have_been_and_ever_after(at_once: int) -> None:
    reader = FakeReader(broken_sample=9, batches_at_once=at_once)
    with closing(make_loader(reader, [4] * 20)) as loader:
        assert pixels(next(loader)) == [0, 1, 2, 3]
        assert pixels(next(loader)) == [4, 5, 6, 7]
        for _ in range(3):
            with pytest.raises(ValueError, match="sample 9 is broken"):
                next(loader)


def test_an_error_in_the_plan_is_raised_too() -> None:
    def plan() -> Iterator[Request]:
        yield Request(np.arange(4), 0)
        raise RuntimeError("no such step")

    with closing(Loader(FakeReader(), plan(), batch_size=4, depth=2)) as loader:
        next(loader)
        with pytest.raises(RuntimeError, match="no such step"):
            next(loader)


@AT_ONCE
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_batch_is_not_overwritten_while_it_is_in_use(depth: int, at_once: int) -> None:
    """With one in use the reader fills all other buffers and then waits."""
    reader = FakeReader(batches_at_once=at_once)
    with closing(make_loader(reader, [4] * 20, depth=depth)) as loader:
        for number in range(8):
            batch = next(loader)
            wait_until(lambda: loader.queued_batches == depth)
            assert reader.num_reads == number + 1 + depth
            assert pixels(batch) == [4 * number + place for place in range(4)]


def test_memory_is_that_of_the_ring() -> None:
    addresses = set()
    with closing(make_loader(FakeReader(), [4] * 50, depth=3)) as loader:
        for batch in loader:
            addresses.add(batch.images.data_ptr())
    assert len(addresses) == 4


def test_a_batch_is_not_overwritten_while_it_is_copied_to_the_device() -> None:
    reader, copy = FakeReader(), FakeEvent()
    with closing(make_loader(reader, [4] * 5, depth=1)) as loader:
        batch = next(loader)
        batch.copied = copy  # type: ignore[assignment]
        second = next(loader)
        assert copy.is_waited_for.wait(DEADLINE_SECONDS)
        assert reader.num_reads == 2
        assert pixels(batch) == [0, 1, 2, 3]
        copy.happens.set()
        assert pixels(second) == [4, 5, 6, 7]
        assert pixels(next(loader)) == [8, 9, 10, 11]
        assert [pixels(batch)[0] for batch in loader] == [12, 16]


def test_the_cost_of_reading_is_reported_once() -> None:
    with closing(make_loader(FakeReader(), (4, 4, 2))) as loader:
        assert len(list(loader)) == 3
        assert loader.take_cost() == ReadCost(10, 100, 0.75, 1.5)
        assert loader.take_cost() == ReadCost()


@pytest.mark.parametrize("num_taken", range(7))
@AT_ONCE
@pytest.mark.parametrize("depth", [1, 3])
def test_close_never_hangs(num_taken: int, depth: int, at_once: int) -> None:
    """Before the first batch, in the middle, with a full ring, at the end; once and again."""
    loader = make_loader(FakeReader(batches_at_once=at_once), [4] * 6, depth=depth)
    for _ in range(num_taken):
        next(loader)
    in_time(loader.close)
    in_time(loader.close)


def test_batches_are_read_at_once_and_come_in_order() -> None:
    reader, gates = FakeReader(batches_at_once=2), [threading.Event() for _ in range(3)]
    read = reader.read

    def wait_and_read(samples: Indices, *rest: Any) -> tuple[Indices, ReadCost, None]:
        assert gates[samples[0] // 4].wait(DEADLINE_SECONDS)
        return read(samples, *rest)

    reader.read = wait_and_read  # type: ignore[method-assign,assignment]
    with closing(make_loader(reader, [4] * 3, depth=3)) as loader:
        gates[1].set()
        wait_until(lambda: reader.num_reads == 1)
        assert loader.queued_batches == 0, "the first one is not read yet"
        gates[0].set()
        wait_until(lambda: loader.queued_batches == 2)
        gates[2].set()
        assert [pixels(batch)[0] for batch in loader] == [0, 4, 8]


@AT_ONCE
def test_close_after_an_error_never_hangs(at_once: int) -> None:
    loader = make_loader(FakeReader(broken_sample=0, batches_at_once=at_once), (4, 4))
    with pytest.raises(ValueError, match="broken"):
        next(loader)
    in_time(loader.close)


def test_close_waits_for_the_read_in_progress_and_begins_no_other() -> None:
    reader = FakeReader()
    reader.gate.clear()
    loader = make_loader(reader, [4] * 10, depth=4)
    assert reader.has_begun.wait(DEADLINE_SECONDS)
    closing = threading.Thread(target=loader.close, daemon=True)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    reader.gate.set()
    closing.join(DEADLINE_SECONDS)
    assert not closing.is_alive()
    assert reader.num_reads == 1


@pytest.mark.parametrize("broken_sample", [-1, 0])
def test_a_closed_loader_is_exhausted(broken_sample: int) -> None:
    reader = FakeReader(broken_sample)
    loader = make_loader(reader, [4] * 6)
    assert reader.has_begun.wait(DEADLINE_SECONDS)
    loader.close()
    outcome = []
    in_time(lambda: outcome.append(next(loader, None)))
    assert outcome == [None]
    assert loader.queued_batches == 0


@AT_ONCE
def test_a_loader_leaves_no_thread_behind(at_once: int) -> None:
    before = set(threading.enumerate())  # one of another test may end meanwhile
    with closing(make_loader(FakeReader(batches_at_once=at_once), [4] * 6)) as loader:
        next(loader)
        most = 1 if at_once == 1 else 1 + at_once
        assert 1 <= len(set(threading.enumerate()) - before) <= most
    assert set(threading.enumerate()) <= before


def whole_run(plan: BatchPlan, start_step: int, end_step: int) -> list[list[list[int]]]:
    """What each rank is asked for."""
    return [
        [parts[rank].samples.tolist() for parts in training_requests(plan, 5, start_step, end_step)]
        for rank in range(plan.num_replicas)
    ]


@given(start_step=st.integers(0, 8), num_steps=st.integers(0, 8), drop_last=st.booleans())
def test_a_resumed_run_asks_for_what_is_left(
    start_step: int, num_steps: int, drop_last: bool
) -> None:
    plan = BatchPlan(
        num_samples=29,
        global_batch_size=12,
        num_replicas=2,
        accumulation_steps=2,
        drop_last=drop_last,
    )
    end_step = start_step + num_steps
    undisturbed = whole_run(plan, 0, end_step)
    resumed = whole_run(plan, start_step, end_step)
    assert resumed == [of_rank[2 * start_step :] for of_rank in undisturbed]
    assert all(len(of_rank) == 2 * num_steps for of_rank in resumed)


def test_training_requests_follow_the_order_of_each_epoch() -> None:
    plan = BatchPlan(
        num_samples=27, global_batch_size=12, num_replicas=3, accumulation_steps=1, drop_last=False
    )
    ranks = whole_run(plan, 0, 2 * plan.steps_per_epoch)
    samples = [sample for step in zip(*ranks, strict=True) for part in step for sample in part]
    assert samples == [*epoch_order(27, 5, 0), *epoch_order(27, 5, 1)]
    asked = training_requests(plan, 5, 0, 2 * plan.steps_per_epoch)
    assert [requests[0].epoch for requests in asked] == [0] * 3 + [1] * 3


def test_training_requests_follow_the_order_of_shards() -> None:
    shuffle = ShardShuffle((9,) * 3, 1)
    plan = BatchPlan(
        num_samples=27,
        global_batch_size=9,
        num_replicas=3,
        accumulation_steps=1,
        drop_last=True,
        shuffle=shuffle,
    )
    ranks = whole_run(plan, 0, 2 * plan.steps_per_epoch)
    samples = [sample for step in zip(*ranks, strict=True) for part in step for sample in part]
    assert samples == [*epoch_order(27, 5, 0, shuffle), *epoch_order(27, 5, 1, shuffle)]


def test_requests_of_blocks_are_their_samples() -> None:
    blocks = sample_blocks(range(100, 123), 5, num_replicas=2, replica=0)
    asked = list(block_requests(blocks))
    assert [request.position for request in asked] == [100, 110, 120]
    samples = [request.samples.tolist() for request in asked]
    assert samples == [[*range(100, 105)], [*range(110, 115)], [120, 121, 122]]
