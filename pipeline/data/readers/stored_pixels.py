"""Reads images that are stored as pixels: copies each crop out of a file in memory."""

from __future__ import annotations

import threading
import time

import numpy as np
import numpy.typing as npt

from data_prep.shard_set.pixels import MappedFile, copy_windows
from pipeline.data.augment.crop_policy import CropBoxes, CropPolicy
from pipeline.data.order.partition import Indices
from pipeline.data.readers.file_reader import FileReader
from pipeline.data.readers.sample_index import CorruptImage, ReadCost, SampleIndex


class PixelReader(FileReader):
    """Copies crops out of mapped files, unless they are to be scaled.

    It compares an image with its checksum when it is first read. A file that is cut meanwhile is
    damage like any other.
    """

    _parts_of_thread = 1

    def __init__(
        self, index: SampleIndex, crop_policy: CropPolicy, max_corrupt: int | None, num_threads: int
    ) -> None:
        super().__init__(index, crop_policy, max_corrupt, num_threads)
        assert index.image_size is not None
        self._size = index.image_size
        self._num_bytes = 3 * self._size[0] * self._size[1]
        self._maps: dict[int, MappedFile] = {}
        self._mapping = threading.Lock()
        self._is_sound = np.zeros(self.num_samples, np.bool_)

    def _fill(self, samples: Indices, epoch: int, images: npt.NDArray[np.uint8]) -> ReadCost:
        boxes = self._boxes(samples, epoch)
        is_as_is = (boxes.heights == self.image_shape[0]) & (boxes.widths == self.image_shape[1])
        if not self._index.files.are_lasting or not is_as_is.all():
            return super()._fill(samples, epoch, images)
        cost = ReadCost()
        if not self._is_sound[samples].all():
            cost = self._share_out(len(samples), lambda part: self._check_all(samples[part]))
            boxes = self._boxes(samples, epoch)
        cost.add(
            self._share_out(len(samples), lambda part: self._copy(part, samples, boxes, images))
        )
        return cost

    def _boxes(self, samples: Indices, epoch: int) -> CropBoxes:
        sides = (np.full(len(samples), side) for side in self._size)
        return self._crop_policy.boxes(samples, epoch, *sides)

    def _check_all(self, samples: Indices) -> ReadCost:
        """Put good samples in the places of damaged ones."""
        cost = ReadCost()
        begin = time.perf_counter()
        for row in np.flatnonzero(~self._is_sound[samples]).tolist():
            self._load_good(samples, row, cost, self._check)
        cost.read_seconds = time.perf_counter() - begin
        return cost

    def _check(self, sample: int, cost: ReadCost) -> None:
        if not self._is_sound[sample]:
            self._load(sample, cost)
            file, offset, num_bytes, _ = self._index.row(sample)
            if offset + num_bytes > self._map(file).num_bytes:
                raise CorruptImage("its file was cut")
            self._is_sound[sample] = True

    def _copy(
        self, part: slice, samples: Indices, boxes: CropBoxes, images: npt.NDArray[np.uint8]
    ) -> ReadCost:
        """Crops of the output's size, out of files in memory."""
        cost = ReadCost(num_bytes=images[part].nbytes)
        begin = time.perf_counter()
        start = part.start
        while start < part.stop:
            rest = slice(start, part.stop)
            failed = copy_windows(
                self._addresses(samples[rest]),
                self._size,
                boxes.tops[rest],
                boxes.lefts[rest],
                images[rest],
            )
            if failed is None:
                break
            start += failed
            sample = int(samples[start])
            self._is_sound[sample] = False
            self._quarantine(sample, CorruptImage("its file was cut, or its disk fails"), cost)
            self._load_good(samples, start, cost, self._check)
        cost.read_seconds = time.perf_counter() - begin
        return cost

    def _addresses(self, samples: Indices) -> npt.NDArray[np.uint64]:
        """Where the first pixels of sound samples are in memory."""
        rows = self._index.rows[samples]
        numbers, positions = np.unique(rows["shard"], return_inverse=True)
        begins = np.array([self._map(number).address for number in numbers.tolist()], np.uint64)
        ends = rows["offset"] + rows["num_bytes"]
        return np.asarray(begins[positions] + ends - np.uint64(self._num_bytes), np.uint64)

    def _map(self, number: int) -> MappedFile:
        with self._mapping:
            if number not in self._maps:
                with self._index.files.reading(number) as file:
                    self._maps[number] = MappedFile(file)
            return self._maps[number]

    def close(self) -> None:
        super().close()
        self._maps.clear()
