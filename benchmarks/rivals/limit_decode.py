"""What no reader of whole JPEGs can beat: a bare loop of libjpeg-turbo; start one process a core.

The files lie in memory, and the pixels go into one buffer and are forgotten.
"""

from __future__ import annotations

import numpy as np
import simplejpeg

from benchmarks.rivals.rounds import Epoch, Task, serve


def open_epoch(task: Task) -> Epoch:
    files = [path.read_bytes() for path, _ in task.samples()]
    sizes = [simplejpeg.decode_jpeg_header(content)[:2] for content in files]
    buffer = np.empty(max(height * width for height, width in sizes) * 3, np.uint8)
    repeats = task.repeats(len(files))

    def epoch() -> int:
        for _ in range(repeats):
            for content in files:
                simplejpeg.decode_jpeg(content, buffer=buffer)
        return repeats * len(files)

    return epoch


if __name__ == "__main__":
    serve(__doc__, open_epoch, ["simplejpeg"], ["original", "jpeg256"])
