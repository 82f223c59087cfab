"""What no reader of pixels can beat: a compiled loop that copies crops from a memory-mapped file.

Random crops of 224×224, not flipped, go into a batch, in `--num-workers` threads. One batch that is
written again and again stays in the processor's cache. With `--num-buffers` several are written in
turn, as a loader has to that reads ahead. With `--planes` images are planes of luma and of halved
chroma, and what is copied are the 226×226 pixels around a crop, at even places.

The loop stores as a compiler's loops do. Ours stores past the caches, and so can be faster where a
batch does not stay in one.
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
    BATCH_SIZE,
    CROP_PIXELS,
    PLANES_SHAPE,
    STORED_PIXELS,
    Epoch,
    Task,
    serve,
)

Indices = npt.NDArray[np.int64]


PIECES = np.array([[3 * STORED_PIXELS, CROP_PIXELS, 3 * CROP_PIXELS]])
"""Of an image's window: bytes from line to line, lines, and bytes of a line."""

_HALF, _COPIED = STORED_PIXELS // 2, PLANES_SHAPE[2]
PLANES = np.array([[STORED_PIXELS, _COPIED, _COPIED], *2 * [[_HALF, _COPIED // 2, _COPIED // 2]]])
"""The same of Y, Cb and Cr."""


@njit(nogil=True)
def copy_windows(
    source: Pixels, rows: Indices, starts: Indices, pieces: Indices, batch: Pixels
) -> None:
    """Copy the windows of N images of `source`, whose pieces begin at `starts`, N×P, into `batch`.

    Both have an image's bytes as their last dimension. Indices are unsigned: numba then leaves out
    its test for negative ones, and the inner loop becomes a block copy.
    """
    for image in range(len(rows)):
        taken, copied, target = source[rows[image]], batch[image], np.uint64(0)
        for piece in range(len(pieces)):
            begin, step = np.uint64(starts[image, piece]), np.uint64(pieces[piece, 0])
            num_bytes = np.uint64(pieces[piece, 2])
            for _ in range(pieces[piece, 1]):
                for at in range(num_bytes):
                    copied[target + at] = taken[begin + at]
                begin, target = begin + step, target + num_bytes


def draw_starts(dice: np.random.Generator, count: int, planes: bool) -> Indices:
    """Where the pieces of random windows begin, N×P."""
    if not planes:
        tops, lefts = dice.integers(STORED_PIXELS - CROP_PIXELS + 1, size=(2, count))
        return np.asarray(3 * (tops * STORED_PIXELS + lefts))[:, None]
    tops, lefts = dice.integers((STORED_PIXELS - _COPIED) // 2 + 1, size=(2, count))
    chroma = STORED_PIXELS**2 + tops * _HALF + lefts
    return np.stack([2 * (tops * STORED_PIXELS + lefts), chroma, chroma + _HALF**2], axis=1)


def open_epoch(task: Task) -> Epoch:
    paths = [path for path, _ in task.samples()]
    source = save_images(paths, task.scratch / "images.npy", planes=task.planes)
    pieces = PLANES if task.planes else PIECES
    shape = (task.num_buffers, BATCH_SIZE, int(np.sum(pieces[:, 1] * pieces[:, 2])))
    batches = np.zeros(shape, np.uint8)
    edges = np.linspace(0, BATCH_SIZE, task.num_workers + 1).astype(int).tolist()
    parts = list(itertools.starmap(slice, itertools.pairwise(edges)))
    threads = ThreadPoolExecutor(task.num_workers)
    dice = np.random.default_rng(task.rank)
    num_batches = max(1, round(task.num_images / BATCH_SIZE))

    def copy(rows: Indices, starts: Indices, batch: Pixels, part: slice) -> None:
        copy_windows(source, rows[part], starts[part], pieces, batch[part])

    def epoch() -> int:
        for number in range(num_batches):
            rows = dice.integers(len(source), size=BATCH_SIZE)
            starts = draw_starts(dice, BATCH_SIZE, task.planes)
            batch = batches[number % len(batches)]
            job = functools.partial(copy, rows, starts, batch)
            list(threads.map(job, parts) if len(parts) > 1 else map(job, parts))
        return num_batches * BATCH_SIZE

    return epoch


def save_images(paths: list[Path], file: Path, *, planes: bool) -> Pixels:
    """The images of 256×256 in one .npy, memory-mapped as uint8, an image's bytes in a row."""
    image_bytes = 3 * STORED_PIXELS**2 // (2 if planes else 1)
    images = np.lib.format.open_memmap(file, "w+", np.uint8, (len(paths), image_bytes))
    for row, path in enumerate(paths):
        image = open_rgb(path)
        if planes:
            luma, *chroma = np.moveaxis(np.asarray(image.convert("YCbCr")), 2, 0)
            halved = [plane[::2, ::2].ravel() for plane in chroma]
            images[row] = np.concatenate([luma.ravel(), *halved])
        else:
            images[row] = np.asarray(image).ravel()
    images.flush()
    mapped: Pixels = np.load(file, mmap_mode="r")
    return mapped


if __name__ == "__main__":
    serve(__doc__, open_epoch, ["numba", "numpy"], ["raw256"])
