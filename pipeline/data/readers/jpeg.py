"""Reads JPEGs: decodes of each no more than its crop needs."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from data_prep.shard_set.pixels import cut_jpegs, jpeg_size
from pipeline.data.augment.crop_policy import CropPolicy
from pipeline.data.order.partition import Indices
from pipeline.data.readers.reading import CorruptImage, Quarantine, ReadCost, Threads, read_content
from pipeline.data.readers.sample_index import SampleIndex

_PARTS_EACH = 4
"""JPEGs of one batch differ much in size."""

_Row = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class _Stored:
    """A sample as it lies in its file."""

    sample: int
    label: int
    content: bytes
    height: int
    width: int


class JpegReader:
    """See `Reader`. Every image is compared with its checksum."""

    def __init__(
        self,
        index: SampleIndex,
        crop_policy: CropPolicy,
        quarantine: Quarantine,
        *,
        num_threads: int,
    ) -> None:
        self._index = index
        self._crop_policy = crop_policy
        self._quarantine = quarantine
        self._threads = Threads(num_threads, parts_each=_PARTS_EACH)
        self.num_samples = index.num_samples
        self.image_shape = (*crop_policy.output_size, 3)

    def read(
        self, samples: Indices, epoch: int, images: npt.NDArray[np.uint8]
    ) -> tuple[Indices, ReadCost]:
        assert len(samples) <= len(images), f"{len(samples)} samples, room for {len(images)}"
        labels = np.empty(len(samples), np.int64)
        cost = self._threads.share_out(
            len(samples),
            lambda part: self._read(samples[part], epoch, images[part], labels[part]),
        )
        cost.num_samples = len(samples)
        return labels, cost

    def _read(
        self, samples: Indices, epoch: int, images: npt.NDArray[np.uint8], labels: Indices
    ) -> ReadCost:
        cost = ReadCost()
        begin = time.perf_counter()
        rows = self._index.rows(samples).tolist()
        stored = [
            self._load(sample, row, cost)
            for sample, row in zip(samples.tolist(), rows, strict=True)
        ]
        cost.read_seconds = time.perf_counter() - begin
        labels[:] = [item.label for item in stored]
        numbers = np.array([(item.sample, item.height, item.width) for item in stored]).T
        boxes = self._crop_policy.boxes(numbers[0], epoch, numbers[1], numbers[2])
        windows = boxes.as_rows()
        contents, start = [item.content for item in stored], 0
        while failure := cut_jpegs(contents[start:], windows[start:], images[start:]):
            row = start + failure[0]
            other = self._quarantine.replace(stored[row].sample, CorruptImage(failure[1]), cost)
            one = slice(row, row + 1)
            cost.add(self._read(np.array([other]), epoch, images[one], labels[one]))
            start = row + 1
        cost.decode_seconds = time.perf_counter() - begin - cost.read_seconds
        return cost

    def _load(self, sample: int, row: _Row, cost: ReadCost) -> _Stored:
        """Read a sample with its row of the index, or the next one that can be read."""
        while True:
            other = self._quarantine.stand_in(sample, cost)
            try:
                if other != sample:
                    row = self._index.rows(np.array([other])).tolist()[0]
                return self._load_exactly(other, row, cost)
            except CorruptImage as error:
                self._quarantine.replace(other, error, cost)

    def _load_exactly(self, sample: int, row: _Row, cost: ReadCost) -> _Stored:
        index = self._index
        file, offset, num_bytes, label = row
        content = read_content(index, file, offset, num_bytes, cost)
        if isal_zlib.crc32(content) != int(index.checksums[sample]):
            raise CorruptImage("not the image that was written (CRC-32)")
        try:
            height, width = jpeg_size(content)
        except ValueError as error:
            raise CorruptImage(str(error)) from None
        if index.image_size not in (None, (height, width)):
            expected = "×".join(map(str, index.image_size or ()))
            raise CorruptImage(f"the image is {height}×{width}; expected {expected}")
        return _Stored(sample, label, content, height, width)

    def give_up(self) -> None:
        self._index.give_up()

    def close(self) -> None:
        self._threads.close()
        self._index.close()
