"""ffcv: one .beton, its threads, compiled pipeline; `os_cache`, random order, 2 workers.

As its documentation has it for a data set in memory. Images go through its writer, which encodes
JPEGs anew, at its default quality of 90 (`original`) or 95 (`jpeg256`), with subsampled colours. A
random crop of fixed size is its resizing decoder with one scale, which then only copies; its flip
takes several times as long, so with `--no-flip` that is left to the device.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rivals.crops import Pixels, open_rgb
from benchmarks.rivals.rounds import (
    BATCH_SIZE,
    CROP_PIXELS,
    STORED_PIXELS,
    Epoch,
    Task,
    check_batch,
    serve,
)


class Images:
    """The samples as pixels and labels: what ffcv's writer takes."""

    def __init__(self, samples: list[tuple[Path, int]]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Pixels, int]:
        path, label = self._samples[index]
        return np.asarray(open_rgb(path)), label  # RGB: a gray image would hang the writer


def open_epoch(task: Task) -> Epoch:
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor

    samples = task.samples()
    beton = task.scratch / "train.beton"
    write(Images(samples), beton, task)
    decoder = RandomResizedCropRGBImageDecoder((CROP_PIXELS, CROP_PIXELS))
    if task.setting != "original":
        share = (CROP_PIXELS / STORED_PIXELS) ** 2
        decoder = RandomResizedCropRGBImageDecoder(
            (CROP_PIXELS, CROP_PIXELS), scale=(share, share), ratio=(1.0, 1.0)
        )
    loader = Loader(
        str(beton),
        batch_size=BATCH_SIZE,
        num_workers=min(task.num_workers, len(os.sched_getaffinity(0))),
        os_cache=True,
        order=OrderOption.RANDOM,
        indices=np.tile(np.arange(len(samples)), task.repeats(len(samples))),
        drop_last=False,
        pipelines={
            "image": [decoder, *([RandomHorizontalFlip()] if task.flip else []), ToTensor()],
            "label": [IntDecoder(), ToTensor(), Squeeze(1)],
        },
    )
    return lambda: sum(check_batch(images, labels) for images, labels in loader)


def write(images: Any, beton: Path, task: Task) -> None:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    mode = "raw" if task.setting == "raw256" else "jpg"
    quality = 90 if task.setting == "original" else 95
    fields = {"image": RGBImageField(write_mode=mode, jpeg_quality=quality), "label": IntField()}
    DatasetWriter(str(beton), fields, num_workers=task.num_workers).from_indexed_dataset(images)


if __name__ == "__main__":
    serve(__doc__, open_epoch, ["ffcv", "numba", "torch"])
