"""Reads JPEGs: decodes only what the crop of each needs."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from data_prep.shard_set.pixels import cut_jpegs, jpeg_size
from pipeline.data.augment.crop_policy import ImageSize
from pipeline.data.order.partition import Indices
from pipeline.data.readers.file_reader import FileReader
from pipeline.data.readers.reading import CorruptImage, ReadCost


class JpegReader(FileReader):
    """Compares every image with its checksum each time."""

    _parts_of_thread = 4  # JPEGs of one batch differ much in size

    def _fill(self, samples: Indices, epoch: int, images: npt.NDArray[np.uint8]) -> ReadCost:
        return self._share_out(
            len(samples), lambda part: self._cut(samples[part], epoch, images[part])
        )

    def _cut(self, samples: Indices, epoch: int, images: npt.NDArray[np.uint8]) -> ReadCost:
        cost = ReadCost()
        begin = time.perf_counter()
        stored = [self._load_good(samples, row, cost, self._load) for row in range(len(samples))]
        cost.read_seconds = time.perf_counter() - begin
        heights, widths = np.array([size for _, size in stored]).T
        windows = self._crop_policy.boxes(samples, epoch, heights, widths).as_rows()
        contents, start = [content for content, _ in stored], 0
        while failure := cut_jpegs(contents[start:], windows[start:], images[start:]):
            row = start + failure[0]
            self._quarantine(int(samples[row]), CorruptImage(failure[1]), cost)
            start = row + 1
            cost.add(self._cut(samples[row:start], epoch, images[row:start]))
        cost.decode_seconds = time.perf_counter() - begin - cost.read_seconds
        return cost

    def _load(self, sample: int, cost: ReadCost) -> tuple[bytes, ImageSize]:
        content = self._index.read_verified(sample, cost)
        try:
            size = jpeg_size(content)
        except ValueError as error:
            raise CorruptImage(str(error)) from None
        if self._index.image_size not in (None, size):
            found, expected = (
                "×".join(map(str, one)) for one in (size, self._index.image_size or ())
            )
            raise CorruptImage(f"the image is {found}; expected {expected}")
        return content, size
