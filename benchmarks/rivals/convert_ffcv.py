"""A conversion with ffcv's DatasetWriter, in 2 processes: JPEGs of quality 95, or pixels.

Decoding and scaling by Pillow, in its workers. Starting the processes counts, importing does not.
"""

from __future__ import annotations

import numpy as np

from benchmarks.rivals.crops import Pixels, middle_square, open_rgb
from benchmarks.rivals.ffcv_loader import Images, write
from benchmarks.rivals.rounds import STORED_PIXELS, Epoch, Task, serve


class Shrunk(Images):
    """The samples scaled to 256×256."""

    def __getitem__(self, index: int) -> tuple[Pixels, int]:
        path, label = self._samples[index]
        return np.asarray(middle_square(open_rgb(path), STORED_PIXELS)), label


def open_epoch(task: Task) -> Epoch:
    import ffcv.writer  # noqa: F401  so that importing it is not timed

    images = Shrunk(task.samples())

    def epoch() -> int:
        write(images, task.scratch / "train.beton", task)
        return len(images)

    return epoch


if __name__ == "__main__":
    serve(__doc__, open_epoch, ["ffcv", "pillow"], ["jpeg256", "raw256"])
