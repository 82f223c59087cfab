"""What libjpeg-turbo's own cropping can reach, in a bare loop; start one process a core.

It decodes no columns beside the crop and no rows below it, but has to entropy-decode all above and
beside it. By the function that ours falls back to. The files lie in memory, the crops are drawn
beforehand and are not scaled, and the pixels go into one buffer and are forgotten.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_char_p, c_int, c_size_t, c_void_p
from dataclasses import dataclass

import numpy as np
import simplejpeg

from benchmarks.rivals.crops import draw_box
from benchmarks.rivals.rounds import Epoch, Setting, Task, serve
from data_prep.shard_set.compiled import MESSAGE_BYTES, is_compiled, library
from data_prep.shard_set.pixels import Window


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A JPEG, its size, and a random crop of it."""

    content: bytes
    height: int
    width: int
    window: Window


def draw_jobs(contents: Sequence[bytes], setting: Setting) -> list[Job]:
    """Draws by the module `random`."""
    jobs = []
    for content in contents:
        height, width, *_ = simplejpeg.decode_jpeg_header(content)
        left, top, right, bottom = draw_box(width, height, setting)
        window = Window(top, left, bottom - top, right - left)
        jobs.append(Job(content=content, height=height, width=width, window=window))
    return jobs


def open_epoch(task: Task) -> Epoch:
    if not is_compiled():
        raise ImportError(
            "data_prep/shard_set/c was not compiled: it needs gcc and libjpeg's headers"
        )
    decode = library().decode_window
    decode.argtypes = [c_char_p, c_size_t, c_int * 4, c_void_p, c_char_p]
    decode.restype = c_char_p
    files = [path.read_bytes() for path, _ in task.samples()]
    jobs = draw_jobs(files * task.repeats(len(files)), task.setting)
    out = np.empty(3 * max(job.height * job.width for job in jobs), np.uint8)
    target, message = out.ctypes, ctypes.create_string_buffer(MESSAGE_BYTES)
    arguments = [
        (job.content, len(job.content), (c_int * 4)(*job.window), target, message) for job in jobs
    ]

    def epoch() -> int:
        for values in arguments:
            if (problem := decode(*values)) is not None:
                raise ValueError(problem.decode(errors="replace"))
        return len(arguments)

    return epoch


if __name__ == "__main__":
    serve(__doc__, open_epoch, ["simplejpeg"], ["original", "jpeg256"])
