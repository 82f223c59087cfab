"""A conversion as webdataset's documentation has it: Pillow and ShardWriter, in 2 processes.

Short side to 256, centre crop, JPEG of quality 95; each process writes shards of its own. Starting
the processes counts, importing does not.
"""

from __future__ import annotations

import io
import multiprocessing
from pathlib import Path

import webdataset as wds

from benchmarks.rivals.crops import middle_square, open_rgb
from benchmarks.rivals.rounds import STORED_PIXELS, Epoch, Task, serve

SAMPLES_PER_SHARD = 1000


def open_epoch(task: Task) -> Epoch:
    samples = task.samples()
    context = multiprocessing.get_context("fork")

    def epoch() -> int:
        workers = [
            context.Process(target=write, args=(samples[part :: task.num_workers], part, task))
            for part in range(task.num_workers)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode for worker in workers):
            raise RuntimeError("a worker has failed")
        return len(samples)

    return epoch


def write(samples: list[tuple[Path, int]], part: int, task: Task) -> None:
    pattern = str(task.scratch / f"train-{part}-%06d.tar")
    with wds.ShardWriter(pattern, maxcount=SAMPLES_PER_SHARD, verbose=0) as writer:
        for number, (path, label) in enumerate(samples):
            buffer = io.BytesIO()
            middle_square(open_rgb(path), STORED_PIXELS).save(buffer, "JPEG", quality=95)
            key = f"{part}{number:08d}"
            writer.write({"__key__": key, "jpg": buffer.getvalue(), "cls": label})


if __name__ == "__main__":
    serve(__doc__, open_epoch, ["webdataset", "pillow"], ["jpeg256"])
