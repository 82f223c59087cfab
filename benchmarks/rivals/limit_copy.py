"""What no reader of pixels can beat: a compiled loop that copies crops from a memory-mapped file.

Random crops of 224×224, not flipped, go into a batch, in `--num-workers` threads. One batch that is
written again and again stays in the processor's cache. With `--num-buffers` several are written in
turn, as a loader has to that reads ahead.
"""

from __future__ import annotations

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numba import njit

from benchmarks.rivals.crops import Pixels, open_rgb
from benchmarks.rivals.rounds import (
    BATCH_SHAPE,
    BATCH_SIZE,
    CROP_PIXELS,
    STORED_PIXELS,
    Epoch,
    Task,
    serve,
)

Indices = npt.NDArray[np.int64]


@njit(nogil=True)
def copy_crops(source: Pixels, rows: Indices, places: Indices, batch: Pixels) -> None:
    """Copy the crops at `places`, N×2 (top, left), of N images of `source` into N of `batch`.

    Both have each line's pixels as its last dimension. Indices are unsigned: numba then leaves out
    its test for negative ones, and the inner loop becomes a block copy.
    """
    for image in range(len(rows)):
        top, begin = np.uint64(places[image, 0]), np.uint64(3 * places[image, 1])
        for line in range(np.uint64(batch.shape[1])):
            taken, copied = source[rows[image], top + line], batch[image, line]
            for at in range(np.uint64(batch.shape[2])):
                copied[at] = taken[begin + at]


def open_epoch(task: Task) -> Epoch:
    source = save_pixels([path for path, _ in task.samples()], task.scratch / "pixels.npy")
    batches = np.zeros((task.num_buffers, *BATCH_SHAPE[:2], 3 * CROP_PIXELS), np.uint8)
    edges = np.linspace(0, BATCH_SIZE, task.num_workers + 1).astype(int).tolist()
    parts = list(itertools.starmap(slice, itertools.pairwise(edges)))
    threads = ThreadPoolExecutor(task.num_workers)
    dice = np.random.default_rng(task.rank)
    num_batches = max(1, round(task.num_images / BATCH_SIZE))

    def copy(rows: Indices, places: Indices, batch: Pixels, part: slice) -> None:
        copy_crops(source, rows[part], places[part], batch[part])

    def epoch() -> int:
        for number in range(num_batches):
            rows = dice.integers(len(source), size=BATCH_SIZE)
            places = dice.integers(STORED_PIXELS - CROP_PIXELS + 1, size=(BATCH_SIZE, 2))
            batch = batches[number % len(batches)]
            job = functools.partial(copy, rows, places, batch)
            list(threads.map(job, parts) if len(parts) > 1 else map(job, parts))
        return num_batches * BATCH_SIZE

    return epoch


def save_pixels(paths: list[Path], file: Path) -> Pixels:
    """The images of 256×256 in one .npy, memory-mapped as uint8 N×256×768."""
    shape = (len(paths), STORED_PIXELS, STORED_PIXELS * 3)
    pixels = np.lib.format.open_memmap(file, "w+", np.uint8, shape)
    for row, path in enumerate(paths):
        pixels[row] = np.asarray(open_rgb(path)).reshape(shape[1:])
    pixels.flush()
    mapped: Pixels = np.load(file, mmap_mode="r")
    return mapped


if __name__ == "__main__":
    serve(__doc__, open_epoch, ["numba", "numpy"], ["raw256"])
