"""Reads images that are stored as pixels: copies each crop out of a file in memory."""

from __future__ import annotations

import io
import threading
import time

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from data_prep.shard_set.pixels import MappedFile, Window, copy_windows, scale_window
from pipeline.data.augment.crop_policy import CropBoxes, CropPolicy
from pipeline.data.order.partition import Indices
from pipeline.data.readers.reading import CorruptImage, Quarantine, ReadCost, Threads, read_content
from pipeline.data.readers.sample_index import SampleIndex


class PixelReader:
    """See `Reader`. An image is compared with its checksum when this reader first needs it.

    Files that last stay mapped; one that is cut meanwhile is damage like any other.
    """

    def __init__(
        self,
        index: SampleIndex,
        crop_policy: CropPolicy,
        quarantine: Quarantine,
        *,
        num_threads: int,
    ) -> None:
        assert index.image_size is not None
        self._index = index
        self._size = index.image_size
        self._header = npy_header((*self._size, 3))
        self._num_bytes = 3 * self._size[0] * self._size[1]
        self._crop_policy = crop_policy
        self._quarantine = quarantine
        self._threads = Threads(num_threads)
        self._maps: dict[int, MappedFile] = {}
        self._mapping = threading.Lock()
        self._is_sound = np.zeros(index.num_samples, np.bool_)
        self.num_samples = index.num_samples
        self.image_shape = (*crop_policy.output_size, 3)

    def read(
        self, samples: Indices, epoch: int, images: npt.NDArray[np.uint8]
    ) -> tuple[Indices, ReadCost]:
        assert len(samples) <= len(images), f"{len(samples)} samples, room for {len(images)}"
        samples = samples.copy()
        cost = ReadCost()
        if not self._is_sound[samples].all():
            cost = self._threads.share_out(len(samples), lambda part: self._check(samples[part]))
        sides = (np.full(len(samples), side) for side in self._size)
        boxes = self._crop_policy.boxes(samples, epoch, *sides)
        is_as_is = (boxes.heights == self.image_shape[0]) & (boxes.widths == self.image_shape[1])
        is_copied = self._index.are_lasting and bool(is_as_is.all())
        take = self._copy if is_copied else self._cut
        cost.add(
            self._threads.share_out(len(samples), lambda part: take(part, samples, boxes, images))
        )
        cost.num_samples = len(samples)
        return self._index.rows(samples)["label"].astype(np.int64), cost

    def _check(self, samples: Indices) -> ReadCost:
        """Put good samples in the places of damaged ones."""
        cost = ReadCost()
        begin = time.perf_counter()
        for row in np.flatnonzero(~self._is_sound[samples]).tolist():
            sample = int(samples[row])
            while not self._is_sound[sample]:
                sample = self._quarantine.stand_in(sample, cost)
                try:
                    self._check_one(sample, cost)
                    self._is_sound[sample] = True
                except CorruptImage as error:
                    sample = self._quarantine.replace(sample, error, cost)
            samples[row] = sample
        cost.read_seconds = time.perf_counter() - begin
        return cost

    def _check_one(self, sample: int, cost: ReadCost) -> None:
        index = self._index
        number, offset, num_bytes, _ = index.rows(np.array([sample])).tolist()[0]
        content = read_content(index, number, offset, num_bytes, cost)
        if index.are_lasting and offset + num_bytes > self._map(number).num_bytes:
            raise CorruptImage("its file was cut")
        header = index.prefix + content[: max(0, num_bytes - self._num_bytes)]
        if header != self._header:
            height, width = self._size
            raise CorruptImage(
                f"not an .npy of uint8 {height}×{width}×3, row by row and nothing more"
            )
        checksum = isal_zlib.crc32(content, isal_zlib.crc32(index.prefix))
        if checksum != int(index.checksums[sample]):
            raise CorruptImage("not the image that was written (CRC-32)")

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
            error = CorruptImage("its file was cut, or its disk fails")
            self._replace(samples, start, error, cost)
        cost.read_seconds = time.perf_counter() - begin
        return cost

    def _cut(
        self, part: slice, samples: Indices, boxes: CropBoxes, images: npt.NDArray[np.uint8]
    ) -> ReadCost:
        """Crops of any size, out of images that are read whole."""
        cost = ReadCost()
        begin = time.perf_counter()
        windows = boxes.as_rows().tolist()
        for row in range(part.start, part.stop):
            content = self._read(samples, row, cost)
            pixels = np.frombuffer(content, np.uint8)[-self._num_bytes :].reshape(*self._size, 3)
            scale_window(pixels, Window(*windows[row]), images[row])
        cost.decode_seconds = time.perf_counter() - begin
        return cost

    def _read(self, samples: Indices, row: int, cost: ReadCost) -> bytes:
        """The content of a sound sample, or of another one that is put in its place."""
        while True:
            number, offset, num_bytes, _ = self._index.rows(samples[row : row + 1]).tolist()[0]
            try:
                return read_content(self._index, number, offset, num_bytes, cost)
            except CorruptImage as error:
                self._replace(samples, row, error, cost)

    def _replace(self, samples: Indices, row: int, error: CorruptImage, cost: ReadCost) -> None:
        """Put a good sample in the place of one that was good so far."""
        sample = int(samples[row])
        self._is_sound[sample] = False
        samples[row] = self._quarantine.replace(sample, error, cost)
        cost.add(self._check(samples[row : row + 1]))

    def _addresses(self, samples: Indices) -> npt.NDArray[np.uint64]:
        """Where the first pixels of sound samples are in memory."""
        rows = self._index.rows(samples)
        numbers, positions = np.unique(rows["shard"], return_inverse=True)
        begins = np.array([self._map(number).address for number in numbers.tolist()], np.uint64)
        ends = rows["offset"] + rows["num_bytes"]
        return np.asarray(begins[positions] + ends - np.uint64(self._num_bytes), np.uint64)

    def _map(self, number: int) -> MappedFile:
        with self._mapping:
            if number not in self._maps:
                with self._index.reading(number) as file:
                    self._maps[number] = MappedFile(file)
            return self._maps[number]

    def give_up(self) -> None:
        self._index.give_up()

    def close(self) -> None:
        self._threads.close()
        self._maps.clear()
        self._index.close()


def npy_header(shape: tuple[int, ...]) -> bytes:
    """What precedes the pixels in the .npy file of a uint8 image."""
    file = io.BytesIO()
    fields = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue()
