"""What libjpeg-turbo's own cropping can reach, in a bare loop; start one process a core.

It decodes no columns beside the crop and no rows below it, but has to entropy-decode all above and
beside it. By the function that ours falls back to. The files lie in memory, the crops are drawn
beforehand and are not scaled, and the pixels go into one buffer and are forgotten.
"""

from __future__ import annotations

import numpy as np
import simplejpeg

from benchmarks.compiled import Window, libjpeg_window
from benchmarks.rivals.crops import draw_box
from benchmarks.rivals.rounds import Epoch, Task, serve


def open_epoch(task: Task) -> Epoch:
    files = [path.read_bytes() for path, _ in task.samples()]
    sizes = [simplejpeg.decode_jpeg_header(content)[:2] for content in files]
    decode = libjpeg_window(np.empty(max(height * width for height, width in sizes) * 3, np.uint8))
    crops = [
        (content, Window.of_box(draw_box(width, height, task.setting)))
        for _ in range(task.repeats(len(files)))
        for content, (height, width) in zip(files, sizes, strict=True)
    ]

    def epoch() -> int:
        for content, window in crops:
            decode(content, window)
        return len(crops)

    return epoch


if __name__ == "__main__":
    serve(__doc__, open_epoch, ["simplejpeg"], ["original", "jpeg256"])
