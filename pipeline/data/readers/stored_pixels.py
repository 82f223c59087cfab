"""Reads images that are stored as pixels or planes: copies each crop out of a file in memory."""

from __future__ import annotations

import threading
import time

import numpy as np
import numpy.typing as npt

from data_prep.shard_set.copying import MappedFile, copy_windows
from pipeline.data.augment.crop_policy import CropPolicy
from pipeline.data.augment.crops import CropWindows
from pipeline.data.order.partition import Indices
from pipeline.data.readers.file_reader import FileReader, even_parts
from pipeline.data.readers.sample_index import CorruptImage, ReadCost, SampleIndex

_CACHED_BYTES = 4 << 20
"""Several batches of more do not stay in a processor's cache until they are used."""


class PixelReader(FileReader):
    """Copies crops, which must not be scaled, out of files that are there all the time.

    It compares an image with its checksum when it is first read. A file that is cut meanwhile is
    damage like any other. A batch is copied by the thread that asks for it: several at a time are
    faster than one that threads share.
    """

    def __init__(
        self, index: SampleIndex, crop_policy: CropPolicy, max_corrupt: int | None, num_threads: int
    ) -> None:
        super().__init__(index, crop_policy, max_corrupt, num_threads)
        assert index.image_size is not None
        assert index.files.are_lasting
        assert not crop_policy.scales
        self.batches_at_once = num_threads
        self._size = index.image_size
        self._num_bytes = 3 * self._size[0] * self._size[1] // (2 if self._codec.is_planar else 1)
        self._maps: dict[int, MappedFile] = {}
        self._mapping = threading.Lock()
        self._addresses = np.zeros(len(index.paths), np.uint64)
        """Of the mapped files."""
        self._is_sound = np.zeros(self.num_samples, np.bool_)
        """Whether a sample was compared with its checksum; then its file is mapped."""

    def _fill(
        self, samples: Indices, epoch: int, images: npt.NDArray[np.uint8]
    ) -> tuple[ReadCost, CropWindows | None]:
        cost = ReadCost()
        if not self._is_sound[samples].all():
            cost = self._share_out(
                even_parts(len(samples), self._num_threads),
                lambda part: self._check_all(samples[part]),
            )
        corners, crops = self._windows(samples, epoch)
        copying = self._copy(samples, epoch, corners, images)
        cost.add(copying)
        return cost, self._windows(samples, epoch)[1] if copying.damages else crops

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
        self, samples: Indices, epoch: int, corners: Indices, images: npt.NDArray[np.uint8]
    ) -> ReadCost:
        """Copy the windows of sound samples; if one cannot be read any more, put in a good one."""
        cost = ReadCost()
        begin, start = time.perf_counter(), 0
        while start < len(samples):
            tops, lefts = corners[start:].T
            failed = copy_windows(
                *(self._places(samples[start:]), self._size, tops, lefts),
                images[start : len(samples)],
                streams=images.nbytes > _CACHED_BYTES,
            )
            if failed is None:
                break
            start += failed
            sample, this = int(samples[start]), slice(start, start + 1)
            self._is_sound[sample] = False
            self._quarantine(sample, CorruptImage("its file was cut, or its disk fails"), cost)
            self._load_good(samples, start, cost, self._check)
            corners[this], _ = self._windows(samples[this], epoch)
        cost.num_bytes += images[: len(samples)].nbytes
        cost.read_seconds = time.perf_counter() - begin
        return cost

    def _places(self, samples: Indices) -> npt.NDArray[np.uint64]:
        """Where the first bytes of sound samples' pixels are in memory."""
        rows = self._index.rows[samples]
        ends = rows["offset"] + rows["num_bytes"]
        return np.asarray(self._addresses[rows["shard"]] + ends - np.uint64(self._num_bytes))

    def _map(self, number: int) -> MappedFile:
        with self._mapping:
            if number not in self._maps:
                with self._index.files.reading(number) as file:
                    self._maps[number] = MappedFile(file)
                self._addresses[number] = self._maps[number].address
            return self._maps[number]

    def close(self) -> None:
        super().close()
        self._maps.clear()
