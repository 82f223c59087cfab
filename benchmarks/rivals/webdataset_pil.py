"""webdataset's own pipeline: shards, `decode("pil")`, batches made in 2 workers of its WebLoader.

`raw256` has .npy members instead of JPEGs.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds

from benchmarks.rivals.crops import Pixels, augment, crop, open_rgb
from benchmarks.rivals.rounds import BATCH_SIZE, Epoch, Setting, Task, check_batch, serve

NUM_SHARDS = 10
SHUFFLE_BUFFER = 1000


def open_epoch(task: Task) -> Epoch:
    samples = task.samples()
    kind = "npy" if task.setting == "raw256" else "jpg"
    urls = write_shards(samples, task.scratch, kind)
    dataset = (
        wds.WebDataset(urls * task.repeats(len(samples)), shardshuffle=len(urls))
        .shuffle(SHUFFLE_BUFFER)
        .decode("pilrgb")
        .to_tuple(kind, "cls")
        .map_tuple(transform_of(task.setting))
        .batched(BATCH_SIZE)
    )
    loader: Any = wds.WebLoader(
        dataset, batch_size=None, num_workers=task.num_workers, persistent_workers=True
    )
    return lambda: sum(check_batch(images, labels) for images, labels in loader)


def transform_of(setting: Setting) -> Callable[[Any], Pixels]:
    return crop if setting == "raw256" else Augmentation(setting)


class Augmentation:
    """A callable that worker processes can be given."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    def __call__(self, image: Any) -> Pixels:
        return augment(image, self._setting)


def write_shards(samples: list[tuple[Path, int]], folder: Path, kind: str) -> list[str]:
    """The samples in `NUM_SHARDS` tars, dealt out one by one."""
    urls = [str(folder / f"train-{number:06d}.tar") for number in range(NUM_SHARDS)]
    for number, url in enumerate(urls):
        with wds.TarWriter(url) as writer:
            for row in range(number, len(samples), NUM_SHARDS):
                path, label = samples[row]
                writer.write({"__key__": f"{row:08d}", kind: content(path, kind), "cls": label})
    return urls


def content(path: Path, kind: str) -> bytes:
    if kind == "jpg":
        return path.read_bytes()
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(open_rgb(path)))
    return buffer.getvalue()


if __name__ == "__main__":
    serve(__doc__, open_epoch, ["webdataset", "torch", "pillow"])
