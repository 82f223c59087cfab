"""Splits decoded in device memory, divided among the ranks: no file is read in training.

Every rank holds a stretch of the train split. A batch needs images from all of them: each rank cuts
the crops that the others need out of what it holds, and one all-to-all sends them there while the
device still works on the batch before. Of the val split every rank holds the blocks that its
replica evaluates. On the CPU the device is the host.

Files that are there are read through the page cache, which jobs of a host share.

Longer than 250 lines: what is filled and what is made of it divide samples in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.distributed as dist

from pipeline.data.augment.crop_policy import CropPolicy
from pipeline.data.augment.crops import CropWindows, take_crops, to_device, whole_images
from pipeline.data.augment.planes import size_of
from pipeline.data.batches.loader import Batch, Loader, Request
from pipeline.data.order.partition import Indices
from pipeline.data.readers.sample_index import ReadCost
from pipeline.ranks.failure import waiting_for_ranks
from pipeline.ranks.world import World

CHUNK_SAMPLES = 128
"""That are read together: 13 MB of planes of 256×256, copied in a fraction of a millisecond."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResidentSplit:
    """This rank's stretch of the split, and which rank holds the others."""

    images: torch.Tensor
    """On the device, uint8 n×H×W×3 or planes: samples from `edges[rank]` to `edges[rank + 1]`."""
    edges: Indices
    """int64, one more than there are ranks."""
    labels: Indices
    """Of all samples, int64."""
    damage: ReadCost
    """The damaged images that were found in this rank's stretch."""


def fill(
    images: torch.Tensor, batches: Iterable[Batch], show: Callable[[int, int], None]
) -> Indices:
    """Copy the images of `batches` into `images`, one behind the other; returns their labels.

    A GPU copies by itself, on a stream of its own, out of pinned buffers that are filled meanwhile.
    `show` is told how many images are there, of how many.
    """
    labels, count, stream = np.empty(len(images), np.int64), 0, None
    if images.device.type == "cuda":
        stream = torch.cuda.Stream(images.device)
        stream.wait_stream(torch.cuda.current_stream(images.device))  # it made the memory
    for batch in batches:
        part = slice(count, count + len(batch.images))
        with torch.cuda.stream(stream):
            images[part].copy_(batch.images, non_blocking=True)
            if stream is not None:
                batch.copied = stream.record_event(torch.cuda.Event(blocking=True))
        labels[part] = batch.labels.numpy()
        count = part.stop
        show(count, len(images))
    assert count == len(images), f"{count} images for {len(images)} places"
    if stream is not None:
        stream.synchronize()
    return labels


def load(
    loader: Loader,
    num_samples: int,
    image_shape: tuple[int, ...],
    world: World,
    show: Callable[[int, int], None],
) -> ResidentSplit:
    """Read this rank's stretch of the split; the ranks call it together.

    `loader` gives its whole images, in order; for `show` see `fill`. Whether there is room for them
    is asked before, by `check_room`. Raises what the reader raises.
    """
    mine = stretch(num_samples, world)
    images = torch.empty((len(mine), *image_shape), dtype=torch.uint8, device=world.device)
    with world.fail_together():
        labels = fill(images, loader, show)
    cost = loader.take_cost()
    return ResidentSplit(
        images=images,
        edges=_edges(num_samples, world),
        labels=np.concatenate(world.all_gather_object(labels)),
        damage=ReadCost(num_replaced=cost.num_replaced, damages=cost.damages),
    )


def load_blocks(
    loader: Loader,
    blocks: list[range],
    block_size: int,
    image_shape: tuple[int, ...],
    world: World,
    show: Callable[[int, int], None],
) -> list[Batch]:
    """Read the blocks that this rank's replica evaluates; the ranks call it together.

    `loader` gives their images, in order. What is returned is what a `Loader` that pads would give
    of these blocks, on the device. Raises what the reader raises.
    """
    with world.fail_together():
        shape = len(blocks), block_size, *image_shape
        images = torch.zeros(shape, dtype=torch.uint8, device=world.device)
        samples = np.concatenate([np.zeros(0, np.int64), *map(np.array, blocks)])
        labels = fill(images.flatten(0, 1)[: len(samples)], loader, show)
    held = []
    for number, block in enumerate(blocks):
        part = slice(number * block_size, number * block_size + len(block))
        missing = 0, block_size - len(block)
        batch = Batch(
            images=images[number],
            labels=to_device(np.pad(labels[part], missing, "edge"), world.device),
            samples=np.pad(samples[part], missing, "edge"),
            num_valid=len(block),
        )
        held.append(batch)
    return held


def stretch(num_samples: int, world: World) -> range:
    """The samples that this rank holds."""
    start, stop = _edges(num_samples, world)[world.rank : world.rank + 2].tolist()
    return range(start, stop)


def _edges(num_samples: int, world: World) -> Indices:
    return np.array([num_samples * rank // world.size for rank in range(world.size + 1)])


@dataclass(slots=True)
class _Exchange:
    """Crops on their way to this rank."""

    request: Request
    received: torch.Tensor
    order: Indices
    """For each sample, which of the received crops it is."""
    work: dist.Work


class ResidentBatches:
    """Iterates over the batches of this rank's replica; see `Loader`.

    All ranks must take the same number of batches.
    """

    queued_batches = 0

    def __init__(
        self,
        split: ResidentSplit,
        crop_policy: CropPolicy,
        requests: Iterator[list[Request]],
        world: World,
        replicas: list[int],
    ) -> None:
        """`requests` are those of all replicas, `replicas` the replica of each rank."""
        self._split = split
        self._crop_policy = crop_policy
        self._requests = requests
        self._world = world
        self._replicas = replicas
        self._under_way: _Exchange | None = None
        self._cost = ReadCost()
        self._cost.add(split.damage)

    def take_cost(self) -> ReadCost:
        """The samples since the last call, and the first time the damage; nothing is read now."""
        cost, self._cost = self._cost, ReadCost()
        return cost

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._world.size == 1:
            (request,) = next(self._requests)
            return self._batch(request, self._split.images, self._windows_of(request))
        done = self._under_way or self._begin_exchange()
        if done is None:
            raise StopIteration
        self._under_way = self._begin_exchange()  # it goes on while this batch is trained on
        with waiting_for_ranks():
            done.work.wait()
        return self._batch(done.request, done.received, whole_images(done.received, done.order))

    def _batch(self, request: Request, images: torch.Tensor, crop_windows: CropWindows) -> Batch:
        samples = request.samples
        self._cost.num_samples += len(samples)
        return Batch(
            images=images,
            labels=to_device(self._split.labels[samples], images.device),
            samples=samples,
            num_valid=len(samples),
            crop_windows=crop_windows,
        )

    def _begin_exchange(self) -> _Exchange | None:
        """Begin to send all ranks what they need of the next batch; None if there is none."""
        requests = next(self._requests, None)
        if requests is None:
            return None
        wanted = [requests[replica] for replica in self._replicas]
        edges, rank = self._split.edges, self._world.rank
        owners = [np.searchsorted(edges, one.samples, side="right") - 1 for one in wanted]
        mine = [
            request.samples[owner == rank] for request, owner in zip(wanted, owners, strict=True)
        ]
        request, owner = wanted[rank], owners[rank]
        sent = Request(np.concatenate(mine), request.epoch)
        outgoing = take_crops(self._split.images, self._windows_of(sent))
        received = outgoing.new_empty((len(request.samples), *outgoing.shape[1:]))
        with waiting_for_ranks():
            work = dist.all_to_all_single(
                received,
                outgoing,
                np.bincount(owner, minlength=self._world.size).tolist(),
                [len(samples) for samples in mine],
                async_op=True,
            )
        assert work is not None, "it was asked for"
        order = np.argsort(np.argsort(owner, kind="stable"))
        return _Exchange(request, received, order, work)

    def _windows_of(self, request: Request) -> CropWindows:
        """The crops of samples that this rank holds."""
        samples = request.samples
        sides = (np.full(len(samples), side) for side in size_of(self._split.images))
        boxes = self._crop_policy.boxes(samples, request.epoch, *sides)
        return CropWindows(
            rows=samples - self._split.edges[self._world.rank],
            tops=boxes.tops,
            lefts=boxes.lefts,
            size=self._crop_policy.output_size,
        )

    def finish(self) -> None:
        """Wait for an exchange under way, so that no rank leaves before it has sent its part."""
        if self._under_way is not None:
            with waiting_for_ranks():
                self._under_way.work.wait()
            self._under_way = None
