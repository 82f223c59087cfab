"""SPDL on the CPU: its threads call FFmpeg, which decodes whole images, crops, scales and flips.

    pip install spdl pillow      # in an environment of its own; finds FFmpeg's shared libraries

As the examples of its documentation have it, each thread makes a batch at once; with images that
go from thread to thread it is a seventh slower. Its decoder on CPUs has no partial decoding. The
crop comes before the scaling and the conversion to RGB, so that these see no more than they must.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rivals.crops import draw_box
from benchmarks.rivals.rounds import (
    BATCH_SIZE,
    CROP_PIXELS,
    Epoch,
    Setting,
    Task,
    check_batch,
    serve,
)

NUM_READY = 3
"""Batches that wait to be taken, as in its documentation."""


def open_epoch(task: Task) -> Epoch:
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    samples = task.samples() * task.repeats(len(task.samples()))

    def load(batch: list[tuple[Path, int]]) -> int:
        paths, labels = zip(*batch, strict=True)
        images = spdl.io.to_numpy(spdl.io.convert_frames(list(map(decode, paths))))
        return check_batch(images, np.array(labels))

    def decode(path: Path) -> Any:
        packets = spdl.io.demux_image(str(path))
        filters = describe(packets.codec.width, packets.codec.height, task.setting)
        return spdl.io.decode_packets(packets, filter_desc=filters)

    def epoch() -> int:
        pipeline = (
            PipelineBuilder()
            .add_source(random.sample(samples, len(samples)))
            .aggregate(BATCH_SIZE)
            .pipe(load, concurrency=task.num_workers)
            .add_sink(NUM_READY)
            .build(num_threads=task.num_workers)
        )
        with pipeline.auto_stop():
            return sum(pipeline.get_iterator())

    return epoch


def describe(width: int, height: int, setting: Setting) -> str:
    """FFmpeg's filters for a random crop of an image of that size, flipped half of the times."""
    left, top, right, bottom = draw_box(width, height, setting)
    filters = [f"crop={right - left}:{bottom - top}:{left}:{top}:exact=1"]
    if setting == "original":
        filters.append(f"scale={CROP_PIXELS}:{CROP_PIXELS}:flags=bilinear")
    filters.append("format=rgb24")
    return ",".join([*filters, *(["hflip"] if random.random() < 0.5 else [])])


if __name__ == "__main__":
    serve(__doc__, open_epoch, ["spdl", "spdl-io", "numpy"], ["original", "jpeg256"])
