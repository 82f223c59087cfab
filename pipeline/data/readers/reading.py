"""What all readers have in common: their interface, their cost, and what is done about damage."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from data_prep.shard_set.manifest import ShardSetError
from pipeline.data.order.partition import Indices
from pipeline.data.readers.sample_index import SampleIndex

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """A damaged image of a split; another one stands in for it."""

    sample: int
    """Its number in the split."""
    shard: str
    """The file it is in."""
    what: str
    """What is wrong with it, and its place."""


@dataclass(slots=True)
class ReadCost:
    """What reading cost so far; the seconds are summed over the reader's threads."""

    num_samples: int = 0
    num_bytes: int = 0
    read_seconds: float = 0.0
    decode_seconds: float = 0.0
    num_replaced: int = 0
    """Samples that another one stood in for."""
    damages: list[Damage] = field(default_factory=list)
    """Of those that were not known to be damaged."""

    def add(self, other: ReadCost) -> None:
        self.num_samples += other.num_samples
        self.num_bytes += other.num_bytes
        self.read_seconds += other.read_seconds
        self.decode_seconds += other.decode_seconds
        self.num_replaced += other.num_replaced
        self.damages += other.damages


class Reader(Protocol):
    """Random access to the cropped images of one split."""

    num_samples: int
    image_shape: tuple[int, int, int]

    def read(
        self, samples: Indices, epoch: int, images: npt.NDArray[np.uint8]
    ) -> tuple[Indices, ReadCost]:
        """Fill the first rows of `images`, uint8 N×H×W×3; returns their labels, `int64`, too.

        `epoch` decides random crops. Raises `ShardSetError` naming file and place of an image that
        is damaged, once there are more of them than may be.
        """

    def give_up(self) -> None:
        """Let a read that waits for a shard from a URL fail now, and all later ones.

        May be called while another thread reads.
        """

    def close(self) -> None:
        """Close all files; the reader is of no use afterwards."""


class CorruptImage(Exception):
    """The bytes of an image are not those that were written."""


def read_content(
    index: SampleIndex, file: int, offset: int, num_bytes: int, cost: ReadCost
) -> bytes:
    """The bytes at a place; raises `CorruptImage` if the disk does not give them all."""
    with index.reading(file) as handle:
        try:
            content = os.pread(handle, num_bytes, offset)
        except OSError as error:
            raise CorruptImage(str(error)) from None
    cost.num_bytes += len(content)
    if len(content) < num_bytes:
        raise CorruptImage(f"cut off, {len(content)} of {num_bytes} bytes")
    return content


class Quarantine:
    """The damaged samples of a split: up to `max_corrupt` are replaced, more are too many.

    None: the split is evaluated, and not one may be.

    In the place of a damaged sample comes the next good one of the split, whichever rank reads it.
    """

    def __init__(self, index: SampleIndex, max_corrupt: int | None) -> None:
        self._index = index
        self._max_corrupt = max_corrupt or 0
        self._are_replaced = max_corrupt is not None
        self._corrupt: set[int] = set()
        self._lock = threading.Lock()

    def stand_in(self, sample: int, cost: ReadCost) -> int:
        """The sample itself, or the one for it if it is known to be damaged."""
        if sample not in self._corrupt:
            return sample
        cost.num_replaced += 1
        for distance in range(1, self._index.num_samples):
            other = (sample + distance) % self._index.num_samples
            if other not in self._corrupt:
                return other
        raise ShardSetError(f"every image of the split is damaged; {self._index.remedy}")

    def replace(self, sample: int, error: Exception, cost: ReadCost) -> int:
        """The sample for one that turned out to be damaged; raises `ShardSetError` if too many."""
        row = self._index.rows(np.array([sample]))[0]
        file = int(row["shard"])
        complaint = f"{self._index.describe(file, int(row['offset']))}: {error}"
        with self._lock:
            is_new = sample not in self._corrupt
            if len(self._corrupt) <= self._max_corrupt:  # of threads that fail at once all tell one
                self._corrupt.add(sample)
            count = len(self._corrupt)
        if count > self._max_corrupt:
            total = f"; that makes {count} damaged image{'' if count == 1 else 's'}, and "
            total += f"{self._max_corrupt} may be (data.max_corrupt_ratio)"
            message = f"{complaint}{total if self._are_replaced else ''}"
            raise ShardSetError(f"{message}; {self._index.remedy}") from None
        if is_new:
            shard = self._index.name(file)
            cost.damages.append(Damage(sample=int(sample), shard=shard, what=complaint))
            _log.warning("another image is read instead of a damaged one: %s", complaint)
        return self.stand_in(sample, cost)


class Threads:
    """Shares the samples of a batch out among threads."""

    def __init__(self, count: int, *, parts_each: int = 1) -> None:
        """With more parts than threads none waits long for one whose samples take longer."""
        assert count > 0
        assert parts_each > 0
        self._num_parts = count * parts_each
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="read")

    def share_out(self, num_samples: int, work: Callable[[slice], ReadCost]) -> ReadCost:
        """Call `work` with parts of the batch at the same time; raises what it raises."""
        parts = min(self._num_parts, num_samples)
        edges = [num_samples * part // parts for part in range(parts + 1)] if parts else [0]
        slices = [slice(start, stop) for start, stop in itertools.pairwise(edges)]
        cost = ReadCost()
        for part_cost in self._pool.map(work, slices):
            cost.add(part_cost)
        return cost

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
