"""Our own data path, run as the rivals are: `benchmarks.rivals.rounds` says how.

Shards made by `python -m data_prep shard folder` of the same JPEGs, which go in byte for byte
(`original`, `jpeg256`) or without loss as `--restart` has it, or of their pixels (`raw256`).
`--rank` and `--num-ranks` divide each batch
plan as the ranks of a training run do. With `--no-flip` images are mirrored later, as training does
on its device, where that is a part of what is done there anyway.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import torch

from benchmarks.measurement import shard_folder
from benchmarks.rivals.rounds import (
    BATCH_SIZE,
    CROP_PIXELS,
    PLANES_SHAPE,
    STORED_PIXELS,
    Epoch,
    Task,
    check_batch,
    serve,
)
from data_prep.shard_set.manifest import Encoding
from pipeline.config.augment import AugmentConfig
from pipeline.config.data import DataConfig
from pipeline.config.schema import Config
from pipeline.data.augment.crops import take_crops
from pipeline.data.augment.shifts import draw_flips
from pipeline.data.open import open_data

SEED = 0


def open_epoch(task: Task) -> Epoch:
    torch.set_num_threads(task.num_workers)
    folder = shard_folder(
        task.images,
        task.scratch / "shards",
        *("--restart", task.restart) if task.restart else (),
        encoding=_encoding(task),
        size=None if task.setting == "original" else STORED_PIXELS,
    )
    config = config_of(task, str(folder))
    data = open_data(config, torch.device("cpu"), contextlib.ExitStack())
    whole = min(BATCH_SIZE * task.num_ranks, data.manifest.split("train").num_samples)
    data = dataclasses.replace(data, config=dataclasses.replace(config, global_batch_size=whole))
    plan = data.plan(task.num_ranks)
    source = data.open_files(plan, task.rank)
    num_steps = max(1, round(task.num_images / plan.local_batch_size))

    def batches() -> Iterator[int]:
        with source(0, num_steps) as loader:
            for batch in loader:
                if task.planes:  # the device makes crops of them
                    yield check_batch(batch.images, batch.labels, PLANES_SHAPE)
                    continue
                flips = draw_flips(config.augment, SEED, 0, batch.samples)
                yield check_batch(take_crops(batch.images, batch.crop_windows, flips), batch.labels)

    return lambda: sum(batches())


def _encoding(task: Task) -> Encoding:
    if task.setting != "raw256":
        return "jpeg"
    return "yuv420" if task.planes else "rgb"


def config_of(task: Task, shards: str) -> Config:
    augment = AugmentConfig(crop_pixels=CROP_PIXELS, flip="random" if task.flip else "none")
    if task.setting == "original":
        augment = dataclasses.replace(augment, crop_place="random_resized")
    return Config(
        data=DataConfig(shards=shards, decode_threads=task.num_workers), augment=augment, seed=SEED
    )


if __name__ == "__main__":
    serve(__doc__, open_epoch, ["numpy", "simplejpeg", "torch"])
