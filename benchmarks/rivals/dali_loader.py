"""NVIDIA DALI on the CPU: the pipeline of its ImageNet examples, 2 threads.

    pip install nvidia-dali-cuda120      # works without a GPU; in an environment of its own

A random crop of fixed size is left to its decoder, which then decodes no more than it must. Unlike
the others it has no epochs and goes on working while nobody asks, so what is ready is taken first
and not counted.
"""

from __future__ import annotations

import numpy as np

from benchmarks.rivals.rounds import BATCH_SIZE, CROP_PIXELS, Epoch, Task, check_batch, serve

PREFETCHED = 2
"""Batches that its pipeline makes ahead, its default."""


def open_epoch(task: Task) -> Epoch:
    from nvidia.dali import Pipeline, fn, types

    size = (CROP_PIXELS, CROP_PIXELS)

    pipeline = Pipeline(
        batch_size=BATCH_SIZE,
        num_threads=task.num_workers,
        device_id=None,
        prefetch_queue_depth=PREFETCHED,
    )
    with pipeline:
        content, labels = fn.readers.file(file_root=str(task.images / "train"), random_shuffle=True)
        if task.setting == "original":
            images = fn.decoders.image_random_crop(
                content,
                device="cpu",
                random_aspect_ratio=[3 / 4, 4 / 3],
                random_area=[0.08, 1.0],
            )
            images = fn.resize(images, size=size, interp_type=types.INTERP_TRIANGULAR)
        else:
            images = fn.decoders.image_crop(
                content,
                device="cpu",
                crop=size,
                crop_pos_x=fn.random.uniform(range=(0.0, 1.0)),
                crop_pos_y=fn.random.uniform(range=(0.0, 1.0)),
            )
        pipeline.set_outputs(fn.flip(images, horizontal=fn.random.coin_flip()), labels)
    pipeline.build()
    num_batches = -(-task.num_images // BATCH_SIZE)

    def take() -> int:
        images, labels = (np.asarray(part.as_tensor()) for part in pipeline.run())
        return check_batch(images, labels)

    def epoch() -> int:
        for _ in range(PREFETCHED):
            take()
        return sum(take() for _ in range(num_batches))

    return epoch


if __name__ == "__main__":
    serve(__doc__, open_epoch, ["nvidia-dali-cuda120"], ["original", "jpeg256"])
