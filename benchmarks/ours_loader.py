"""Our own data path, run as the rivals are: `benchmarks.rivals.rounds` says how.

Shards made by `python -m data_prep shard folder` of the same JPEGs, which go in byte for byte
(`jpeg256`), or of their pixels (`raw256`). `--rank` and `--num-ranks` divide each batch plan as the
ranks of a training run do.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.measurement import shard_folder
from benchmarks.rivals.rounds import (
    BATCH_SIZE,
    CROP_PIXELS,
    STORED_PIXELS,
    Epoch,
    Task,
    check_batch,
    serve,
)
from data_prep.manifest import read_manifest
from pipeline.config import AugmentConfig
from pipeline.data.augment import cut, draw_windows
from pipeline.data.loader import Loader, training_requests
from pipeline.data.partition import BatchPlan
from pipeline.data.tar import TarReader

DEPTH = 4
SEED = 0


def open_epoch(task: Task) -> Epoch:
    torch.set_num_threads(task.num_workers)
    shards = shard_folder(
        task.images,
        task.scratch / "shards",
        encoding="rgb" if task.setting == "raw256" else "jpeg",
        size=STORED_PIXELS,
    )
    reader = TarReader(shards, read_manifest(shards), "train", num_threads=task.num_workers)
    augment = AugmentConfig(crop_pixels=CROP_PIXELS, flip="random")
    plan = BatchPlan(
        num_samples=reader.num_samples,
        global_batch_size=min(BATCH_SIZE * task.num_ranks, reader.num_samples),
        num_replicas=task.num_ranks,
        accumulation_steps=1,
        drop_last=True,
    )
    num_steps = max(1, round(task.num_images / plan.local_batch_size))

    def batches() -> Iterator[int]:
        requests = training_requests(plan, SEED, task.rank, 0, num_steps)
        with Loader(reader, requests, batch_size=plan.local_batch_size, depth=DEPTH) as loader:
            for batch in loader:
                size = reader.image_shape[:2]
                windows = draw_windows(augment, size, SEED, 0, batch.samples)
                yield check_batch(cut(batch.images, windows), batch.labels)

    return lambda: sum(batches())


if __name__ == "__main__":
    serve(__doc__, open_epoch, ["numpy", "simplejpeg", "torch"], ["jpeg256", "raw256"])
