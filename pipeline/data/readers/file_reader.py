"""Reads images of any encoding, in threads, and decodes only what the crop of each needs."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from data_prep.shard_set.codec import codec_of
from data_prep.shard_set.manifest import ShardSetError
from pipeline.data.augment.crop_policy import CropPolicy, ImageSize
from pipeline.data.augment.crops import CropWindows
from pipeline.data.augment.planes import cut_size, cut_windows
from pipeline.data.order.partition import Indices
from pipeline.data.readers.sample_index import CorruptImage, Damage, ReadCost, SampleIndex

_SMALLEST_PART = 4
"""Images that are read together in the end: fewer cost more than they save in waiting."""

_log = logging.getLogger(__name__)

T = TypeVar("T")


def even_parts(num_samples: int, num_parts: int) -> list[slice]:
    """A batch in so many parts, or one a sample if they are fewer."""
    count = min(num_parts, num_samples)
    edges = [num_samples * part // count for part in range(count + 1)] if count else []
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def shrinking_parts(num_samples: int, num_threads: int) -> list[slice]:
    """A batch in parts for threads that take one after the other, the smallest last.

    Images differ: with even parts threads wait for the one that takes a part with larger ones last.
    """
    least = min(_SMALLEST_PART, -(-num_samples // num_threads))
    edges = [0]
    while (rest := num_samples - edges[-1]) > 0:
        share = -(-2 * rest // (3 * num_threads))
        edges.append(edges[-1] + min(rest, max(share, least)))
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


class FileReader:
    """Random access to the cropped images of one split; compares each with its checksum each time.

    It takes over the files of `index`, and closes them. Up to `max_corrupt` damaged samples of the
    split are replaced, each by the next good one, whichever rank reads it; more are an error. None:
    the split is evaluated, and none may be damaged.
    """

    def __init__(
        self, index: SampleIndex, crop_policy: CropPolicy, max_corrupt: int | None, num_threads: int
    ) -> None:
        assert num_threads > 0
        self._index = index
        self._codec = codec_of(index.encoding)
        self._crop_policy = crop_policy
        self._max_corrupt = max_corrupt or 0
        self._are_replaced = max_corrupt is not None
        self._corrupt: set[int] = set()
        self._lock = threading.Lock()
        self._num_threads = num_threads
        self.batches_at_once = 2 if index.files.are_lasting else 1
        """How many threads should call `read`: with two of them no thread of the pool waits for the
        last images of a batch. Only where that is one, all that was asked for before has been read
        when the next is asked for: shards from a URL are fetched and dropped by that."""
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="read")
        self.num_samples = len(index.rows)
        self.image_shape: tuple[int, ...] = (*crop_policy.output_size, 3)
        """Of what `read` fills: H×W×3, or planes (3H/2)×W, which hold the crops."""
        if self._codec.is_planar:
            assert index.image_size is not None
            height, width = cut_size(crop_policy, index.image_size)
            self.image_shape = (3 * height // 2, width)

    def read(
        self, samples: Indices, epoch: int, images: npt.NDArray[np.uint8]
    ) -> tuple[Indices, ReadCost, CropWindows | None]:
        """Fill the first rows of `images`, uint8, each of `image_shape`.

        Returns labels, `int64`, what it cost, and which crops of the images the samples are; None:
        all of them. `epoch` decides random crops. Raises `ShardSetError` with file and place of a
        damaged image if more images are damaged than may be.
        """
        assert len(samples) <= len(images), f"{len(samples)} samples, room for {len(images)}"
        found = samples.copy()
        cost, crop_windows = self._fill(found, epoch, images)
        cost.num_samples = len(samples)
        cost.num_replaced = int(np.count_nonzero(found != samples))
        labels = self._index.rows[found]["label"].astype(np.int64)
        return labels, cost, crop_windows

    def _fill(
        self, samples: Indices, epoch: int, images: npt.NDArray[np.uint8]
    ) -> tuple[ReadCost, CropWindows | None]:
        """Fill the images, and put good samples in the places of damaged ones in `samples`."""
        parts = shrinking_parts(len(samples), self._num_threads)
        cost = self._share_out(parts, lambda part: self._cut(samples[part], epoch, images[part]))
        is_cut_larger = self._codec.is_planar and not self._crop_policy.scales
        return cost, self._windows(samples, epoch)[1] if is_cut_larger else None

    def _windows(self, samples: Indices, epoch: int) -> tuple[Indices, CropWindows | None]:
        """Of images of one size, whose crops are not scaled: what is cut, and the crops in it.

        The former N×2: top and left. The latter is None if that is the crops.
        """
        policy, size = self._crop_policy, self._index.image_size
        assert size is not None
        boxes = policy.boxes(samples, epoch, *(np.full(len(samples), side) for side in size))
        if not self._codec.is_planar:
            return np.stack([boxes.tops, boxes.lefts], axis=1), None
        corners = cut_windows(policy, boxes, size)[:, :2].astype(np.int64)
        if policy.output_size == cut_size(policy, size):
            return corners, None
        tops, lefts = boxes.tops - corners[:, 0], boxes.lefts - corners[:, 1]
        rows = np.arange(len(samples))
        return corners, CropWindows(rows=rows, tops=tops, lefts=lefts, size=policy.output_size)

    def _cut(self, samples: Indices, epoch: int, images: npt.NDArray[np.uint8]) -> ReadCost:
        cost = ReadCost()
        begin = time.perf_counter()
        stored = [self._load_good(samples, row, cost, self._load) for row in range(len(samples))]
        cost.read_seconds = time.perf_counter() - begin
        heights, widths = np.array([size for _, size in stored]).T
        boxes = self._crop_policy.boxes(samples, epoch, heights, widths)
        windows = boxes.as_rows()
        if self._codec.is_planar:
            windows = cut_windows(self._crop_policy, boxes, stored[0][1])
        contents, start = [content for content, _ in stored], 0
        while failure := self._codec.cut(contents[start:], windows[start:], images[start:]):
            row = start + failure[0]
            self._quarantine(int(samples[row]), CorruptImage(failure[1]), cost)
            start = row + 1
            cost.add(self._cut(samples[row:start], epoch, images[row:start]))
        cost.decode_seconds = time.perf_counter() - begin - cost.read_seconds
        return cost

    def _load(self, sample: int, cost: ReadCost) -> tuple[bytes, ImageSize]:
        """Content and size of a sample; raises `CorruptImage` if it is damaged."""
        content = self._index.read_verified(sample, cost)
        try:
            return content, self._codec.check_size(content, self._index.image_size)
        except ValueError as error:
            raise CorruptImage(str(error)) from None

    def _share_out(self, parts: Sequence[slice], work: Callable[[slice], ReadCost]) -> ReadCost:
        """Call `work` with parts of the batch at the same time; raises what it raises."""
        num_own = int(len(parts) <= self._num_threads)  # this thread does one, before it would wait
        cost, others = ReadCost(), self._pool.map(work, parts[num_own:])
        for part_cost in itertools.chain(map(work, parts[:num_own]), others):
            cost.add(part_cost)
        return cost

    def _load_good(
        self, samples: Indices, row: int, cost: ReadCost, load: Callable[[int, ReadCost], T]
    ) -> T:
        """What `load` makes of the sample at `row`, or of the next good one, put in its place."""
        while True:
            samples[row] = sample = self._stand_in(int(samples[row]))
            try:
                return load(sample, cost)
            except CorruptImage as error:
                self._quarantine(sample, error, cost)

    def _stand_in(self, sample: int) -> int:
        """The sample itself, or the next one of the split that is not known to be damaged."""
        for distance in range(self.num_samples):
            other = (sample + distance) % self.num_samples
            if other not in self._corrupt:
                return other
        raise ShardSetError(f"every image of the split is damaged; {self._index.remedy}")

    def _quarantine(self, sample: int, error: CorruptImage, cost: ReadCost) -> None:
        """Note that a sample is damaged; raises `ShardSetError` if there are too many."""
        index = self._index
        complaint = f"{index.describe(sample)}: {error}"
        with self._lock:
            is_new = sample not in self._corrupt
            if len(self._corrupt) <= self._max_corrupt:  # all threads that fail at once say one
                self._corrupt.add(sample)
            count = len(self._corrupt)
        if count > self._max_corrupt:
            total = f"; that makes {count} damaged image{'' if count == 1 else 's'}, and "
            total += f"{self._max_corrupt} may be (data.max_corrupt_ratio)"
            message = f"{complaint}{total if self._are_replaced else ''}"
            raise ShardSetError(f"{message}; {index.remedy}") from None
        if is_new:
            shard = index.path_of(sample).name
            cost.damages.append(Damage(sample=sample, shard=shard, what=complaint))
            _log.warning("another image is read instead of a damaged one: %s", complaint)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._index.files.close()
