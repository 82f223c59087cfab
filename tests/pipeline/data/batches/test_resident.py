"""What is resident: who holds what, what comes to whom."""

from __future__ import annotations

import contextlib

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.augment import AugmentConfig
from pipeline.data.augment.crop_policy import training_crop_policy
from pipeline.data.augment.crops import take_crops
from pipeline.data.batches.loader import Loader, block_requests, training_requests
from pipeline.data.batches.resident import (
    ResidentBatches,
    ResidentSplit,
    load,
    load_blocks,
    stretch,
)
from pipeline.data.order.partition import BatchPlan, sample_blocks
from pipeline.data.readers.file_reader import FileReader
from pipeline.data.readers.sample_index import ReadCost
from pipeline.ranks.world import World
from tests.pipeline.rank_jobs import call_on_ranks
from tests.pipeline.worlds import SINGLE

NUM_SAMPLES = 31


class FakeReader(FileReader):
    """Every pixel of an image is its sample number, but for the place in the image."""

    num_samples = NUM_SAMPLES
    image_shape = (6, 7, 3)
    batches_at_once = 2

    def __init__(self) -> None: ...

    def read(
        self, samples: npt.NDArray[np.int64], epoch: int, images: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.int64], ReadCost, None]:
        images[: len(samples)] = image_of(samples)
        return samples * 3 % 10, ReadCost(len(samples)), None

    def close(self) -> None: ...


def image_of(samples: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    places = np.arange(6)[:, None, None] * 11 + np.arange(7)[:, None] * 3 + np.arange(3)
    return (samples[:, None, None, None] * 5 + places).astype(np.uint8)


def make_plan(num_replicas: int) -> BatchPlan:
    return BatchPlan(
        num_samples=NUM_SAMPLES,
        global_batch_size=12,
        num_replicas=num_replicas,
        accumulation_steps=2,
        drop_last=False,
    )


def load_split(world: World) -> ResidentSplit:
    with loader_of(sample_blocks(stretch(NUM_SAMPLES, world), 4)) as loader:
        return load(loader, NUM_SAMPLES, FakeReader.image_shape, world, lambda *_: None)


def loader_of(
    blocks: list[range], batch_size: int = 4, *, pad: bool = False
) -> contextlib.closing[Loader]:
    requests = block_requests(blocks)
    loader = Loader(FakeReader(), requests, batch_size=batch_size, depth=2, pad=pad)
    return contextlib.closing(loader)


def batches_of_rank(
    world: World, replicas: list[int], stop_early: bool
) -> list[tuple[list[int], list[int], npt.NDArray[np.uint8]]]:
    crop_policy = training_crop_policy(AugmentConfig(crop_pixels=4), (6, 7), 0)
    plan = make_plan(max(replicas) + 1)
    requests = training_requests(plan, 0, 1, 1 + 2 * plan.steps_per_epoch)
    found = []
    batches = ResidentBatches(load_split(world), crop_policy, requests, world, replicas)
    for number, batch in enumerate(batches):
        images, labels = batch.to(world.device)
        pixels = take_crops(images, batch.crop_windows).numpy()
        found.append((batch.samples.tolist(), labels.tolist(), pixels))
        assert batches.take_cost() == ReadCost(len(batch.samples))
        if stop_early and number == 2:
            break
    batches.finish()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [[0], [0, 1], [0, 0], [0, 1, 2], [0, 0, 1, 1]], ids=str)
@pytest.mark.parametrize("stop_early", [False, True])
def test_every_rank_gets_the_crops_of_its_replica(replicas: list[int], stop_early: bool) -> None:
    if len(replicas) == 1:
        ranks = [batches_of_rank(SINGLE, replicas, stop_early)]
    else:
        ranks = call_on_ranks(len(replicas), batches_of_rank, replicas, stop_early)
    plan = make_plan(max(replicas) + 1)
    crop_policy = training_crop_policy(AugmentConfig(crop_pixels=4), (6, 7), 0)
    asked = list(training_requests(plan, 0, 1, 1 + 2 * plan.steps_per_epoch))
    for replica, found in zip(replicas, ranks, strict=True):
        assert len(found) == (3 if stop_early else len(asked))
        for requests, (samples, labels, pixels) in zip(asked, found, strict=False):
            request = requests[replica]
            assert samples == request.samples.tolist()
            assert labels == [sample * 3 % 10 for sample in samples]
            sides = (np.full(len(samples), side) for side in (6, 7))
            boxes = crop_policy.boxes(request.samples, request.epoch, *sides)
            for image, crop, top, left in zip(
                image_of(request.samples), pixels, boxes.tops, boxes.lefts, strict=True
            ):
                assert np.array_equal(crop, image[top : top + 4, left : left + 4])


def test_a_split_is_divided_into_stretches() -> None:
    split = load_split(SINGLE)
    assert split.edges.tolist() == [0, NUM_SAMPLES]
    assert torch.equal(split.images, torch.from_numpy(image_of(np.arange(NUM_SAMPLES))))


@given(
    block_size=st.integers(1, 40), num_replicas=st.integers(1, 4), read_at_once=st.integers(1, 9)
)
@settings(deadline=None)
def test_blocks_in_memory_are_those_that_would_be_read(
    block_size: int, num_replicas: int, read_at_once: int
) -> None:
    """Padded alike; and together every sample once, on any number of replicas."""
    seen = []
    for replica in range(num_replicas):
        blocks = sample_blocks(range(NUM_SAMPLES), block_size, num_replicas, replica)
        chunks = [chunk for block in blocks for chunk in sample_blocks(block, read_at_once)]
        with loader_of(chunks, read_at_once) as loader:
            sizes = block_size, FakeReader.image_shape
            held = load_blocks(loader, blocks, *sizes, SINGLE, lambda *_: None)
        with loader_of(blocks, block_size, pad=True) as loader:
            for block, read in zip(held, loader, strict=True):
                assert torch.equal(block.images, read.images)
                assert torch.equal(block.labels, read.labels)
                assert block.samples.tolist() == read.samples.tolist()
                assert block.num_valid == read.num_valid
                seen += block.samples[: block.num_valid].tolist()
    assert sorted(seen) == list(range(NUM_SAMPLES))
