"""LitData: `optimize` writes chunks, StreamingDataset and its DataLoader with 2 workers read them.

    pip install litdata      # brings torchvision: in an environment of its own

JPEGs are stored as they are and decoded by Pillow; `raw256` stores arrays. An epoch of several
times the images is written as often, since it cannot repeat them.
"""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rivals.crops import augment, crop, open_rgb
from benchmarks.rivals.rounds import BATCH_SIZE, Epoch, Setting, Task, check_batch, serve

CHUNK_BYTES = "64MB"  # its default


def open_epoch(task: Task) -> Epoch:
    from litdata import StreamingDataLoader, StreamingDataset, optimize

    samples = task.samples()
    optimize(
        fn=functools.partial(load, raw=task.setting == "raw256"),
        inputs=samples * task.repeats(len(samples)),
        output_dir=str(task.scratch / "chunks"),
        chunk_bytes=CHUNK_BYTES,
        num_workers=task.num_workers,
        mode="overwrite",
    )
    dataset = StreamingDataset(
        str(task.scratch / "chunks"),
        shuffle=True,
        transform=functools.partial(transform, setting=task.setting),
    )
    loader = StreamingDataLoader(
        dataset,
        batch_size=BATCH_SIZE,
        num_workers=task.num_workers,
        persistent_workers=True,
    )
    return lambda: sum(check_batch(batch["image"], batch["label"]) for batch in loader)


def load(sample: tuple[Path, int], raw: bool) -> dict[str, Any]:
    path, label = sample
    image = np.asarray(open_rgb(path)) if raw else path.read_bytes()
    return {"image": image, "label": label}


def transform(sample: dict[str, Any], setting: Setting) -> dict[str, Any]:
    if setting == "raw256":
        return {**sample, "image": crop(sample["image"])}
    return {**sample, "image": augment(open_rgb(io.BytesIO(sample["image"])), setting)}


if __name__ == "__main__":
    serve(__doc__, open_epoch, ["litdata", "torch", "pillow"])
