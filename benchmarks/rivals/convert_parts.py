"""What a conversion cannot beat: its parts as a bare loop of one process; start one a core.

Each image is decoded, its middle square scaled to 256×256 and encoded, with the libraries and
settings of our own conversion. The files lie in memory, and nothing is written.
"""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from PIL import Image

from benchmarks.rivals.crops import Pixels, middle_square
from benchmarks.rivals.rounds import STORED_PIXELS, Epoch, Setting, Task, serve


def open_epoch(task: Task) -> Epoch:
    paths = [path for path, _ in task.samples()][task.rank :: task.num_ranks]
    files = [path.read_bytes() for path in paths]

    def epoch() -> int:
        for content in files:
            image = Image.fromarray(simplejpeg.decode_jpeg(content))
            encode(np.asarray(middle_square(image, STORED_PIXELS)), task.setting)
        return len(files)

    return epoch


def encode(pixels: Pixels, setting: Setting) -> bytes:
    buffer = io.BytesIO()
    if setting == "raw256":
        np.save(buffer, pixels)
    else:
        Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling="4:4:4")
    return buffer.getvalue()


if __name__ == "__main__":
    serve(__doc__, open_epoch, ["simplejpeg", "pillow", "numpy"], ["jpeg256", "raw256"])
