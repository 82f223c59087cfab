"""Batches, read ahead of need by a thread into a ring of preallocated buffers."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import NamedTuple, Protocol, Self

import numpy as np
import torch

from pipeline.data.augment.crops import CropWindows
from pipeline.data.order.partition import BatchPlan, Indices, epoch_order
from pipeline.data.order.shard_needs import run_position
from pipeline.data.readers.file_reader import FileReader
from pipeline.data.readers.sample_index import ReadCost


@dataclass(kw_only=True, slots=True)
class Batch:
    """What training works on: `num_valid` rows are samples, those behind them padding.

    Images in host memory are the loader's, and valid until the next batch is asked for.
    """

    images: torch.Tensor
    """uint8 M×H×W×3 or planes M×(3H/2)×W, in host memory or on the device."""
    labels: torch.Tensor
    """int64 N."""
    samples: Indices
    """Numbers in the split, int64 N."""
    num_valid: int
    crop_windows: CropWindows | None = None
    """Which crops of the images the samples are; None: all, in order."""
    copied: torch.cuda.Event | None = None
    """Set while a copy to the device may still be reading; the loader waits for it."""

    def to(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """`images` and `labels` on `device`, without waiting for the copy.

        What is there already is not copied.
        """
        if self.images.device.type == device.type:
            return self.images, self.labels
        images = self.images.to(device, non_blocking=True)
        labels = self.labels.to(device, non_blocking=True)
        self.copied = torch.cuda.Event(blocking=True)  # to sleep, not to spin, until it happens
        self.copied.record()
        return images, labels


class Batches(Iterator[Batch], Protocol):
    """The batches of a rank, in order."""

    @property
    def queued_batches(self) -> int:
        """Batches that are ready now."""

    def take_cost(self) -> ReadCost:
        """What reading cost since the last call."""


class Request(NamedTuple):
    """One batch to read."""

    samples: Indices
    epoch: int
    """Decides the random crops of training; evaluation has none."""
    position: int = 0
    """In the sequence of all samples: this request and later ones read nothing before it."""


def training_requests(
    plan: BatchPlan, seed: int, start_step: int, end_step: int
) -> Iterator[list[Request]]:
    """The samples of each micro-batch of every replica, from `start_step` up to `end_step`."""
    epoch, order = -1, np.empty(0, np.int64)
    for step in range(start_step, end_step):
        if plan.epoch_of(step) != epoch:
            epoch = plan.epoch_of(step)
            order = epoch_order(plan.num_samples, seed, epoch, plan.shuffle)
        position = run_position(plan, step)
        for micro_batch in range(plan.accumulation_steps):
            parts = (
                plan.positions(step, micro_batch, replica) for replica in range(plan.num_replicas)
            )
            yield [Request(order[part.start : part.stop], epoch, position) for part in parts]


def block_requests(blocks: Iterable[range]) -> Iterator[Request]:
    """One request for each block of consecutive samples."""
    for block in blocks:
        yield Request(np.arange(block.start, block.stop), epoch=0, position=block.start)


def _make_buffer(shape: tuple[int, ...], pin_memory: bool) -> torch.Tensor:
    """Memory for a batch; numpy asks for huge pages where it is large, which saves page faults."""
    if pin_memory:
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
    return torch.from_numpy(np.empty(shape, np.uint8))


class Loader:
    """Iterates over the `Batch`es of `requests`, up to `depth` of them read ahead.

    With `pad` a batch shorter than `batch_size` is padded with zeros. An error of the reader
    is raised by the `next` that would have given the batch, and by every later one. A closed loader
    is exhausted; one that is closed before its end calls `give_up`, so that a read that waits for a
    shard from a URL fails.
    """

    def __init__(
        self,
        reader: FileReader,
        requests: Iterator[Request],
        *,
        batch_size: int,
        depth: int,
        pad: bool = False,
        pin_memory: bool = False,
        give_up: Callable[[], None] | None = None,
    ) -> None:
        self._reader = reader
        self._give_up = give_up
        self._requests = requests
        self._pad = pad
        self._free: SimpleQueue[tuple[torch.Tensor, torch.cuda.Event | None] | None] = SimpleQueue()
        """Buffers, and what to wait for before they are filled again; None wakes the thread."""
        self._ready: SimpleQueue[tuple[torch.Tensor, Batch] | None] = SimpleQueue()  # None: the end
        self._taken: tuple[torch.Tensor, Batch] | None = None
        self._closing = threading.Event()
        self._has_ended = False
        self._is_exhausted = False
        self._failure: BaseException | None = None
        self._cost = ReadCost()
        self._cost_lock = threading.Lock()
        self._order = threading.Lock()
        shape = (batch_size, *reader.image_shape)
        for _ in range(depth + 1):  # one more: the batch the consumer is working on
            self._free.put((_make_buffer(shape, pin_memory), None))
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)
        self._thread.start()

    @property
    def queued_batches(self) -> int:
        """Batches that are ready now."""
        return self._ready.qsize() - self._has_ended

    def take_cost(self) -> ReadCost:
        """What reading cost since the last call."""
        with self._cost_lock:
            cost, self._cost = self._cost, ReadCost()
        return cost

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._taken is not None:
            images, batch = self._taken
            self._free.put((images, batch.copied))
        self._taken = self._ready.get()
        if self._taken is not None:
            return self._taken[1]
        self._is_exhausted = True
        self._ready.put(None)  # an exhausted or failed loader stays so
        raise self._failure or StopIteration

    def _run(self) -> None:
        try:
            self._read_all()
        except BaseException as error:
            self._failure = error
        self._ready.put(None)
        self._has_ended = True

    def _read_all(self) -> None:
        at_once = self._reader.batches_at_once
        under_way: deque[tuple[torch.Tensor, Future[Batch]]] = deque()
        with ThreadPoolExecutor(at_once, thread_name_prefix="batch") as pool:
            for request in self._requests:
                buffer = self._free.get()
                if buffer is None or self._closing.is_set():
                    break
                images, copied = buffer
                if copied is not None:
                    copied.synchronize()
                if at_once == 1:
                    self._ready.put((images, self._fill(images, request)))
                    continue
                batch = pool.submit(self._fill, images, request)
                with self._order:
                    under_way.append((images, batch))
                batch.add_done_callback(lambda _: self._hand_over(under_way))
        for _, batch in under_way:  # from one that failed on
            batch.result()

    def _hand_over(self, under_way: deque[tuple[torch.Tensor, Future[Batch]]]) -> None:
        """Make batches ready in order, as far as they are read."""
        with self._order:
            while under_way and under_way[0][1].done():
                if under_way[0][1].exception() is not None:
                    self._free.put(None)
                    break
                images, batch = under_way.popleft()
                self._ready.put((images, batch.result()))

    def _fill(self, images: torch.Tensor, request: Request) -> Batch:
        samples, pixels, num_valid = request.samples, images.numpy(), len(request.samples)
        labels, cost, crop_windows = self._reader.read(samples, request.epoch, pixels)
        with self._cost_lock:
            self._cost.add(cost)
        if self._pad:
            missing = len(images) - num_valid
            pixels[num_valid:] = 0
            samples, labels = (np.pad(rows, (0, missing), "edge") for rows in (samples, labels))
        return Batch(
            images=images[: len(samples)],
            labels=torch.from_numpy(labels),
            samples=samples,
            num_valid=num_valid,
            crop_windows=crop_windows,
        )

    def close(self) -> None:
        """Stop reading ahead; waits for what is being read, but not for a shard from a URL."""
        self._closing.set()
        if self._give_up is not None and not self._is_exhausted:
            self._give_up()
        self._free.put(None)
        self._thread.join()
        self._taken = self._failure = None
        while self._ready.get() is not None:  # the thread has put the end behind its batches
            pass
        self._ready.put(None)
