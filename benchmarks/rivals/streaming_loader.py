"""MosaicML Streaming: MDS shards, a local StreamingDataset in torch's DataLoader with 2 workers.

    pip install mosaicml-streaming      # wants an older numpy: in an environment of its own

JPEGs are stored as they are and decoded by Pillow; `raw256` stores arrays.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rivals.crops import Pixels, augment, crop, open_rgb
from benchmarks.rivals.rounds import (
    BATCH_SIZE,
    STORED_PIXELS,
    Epoch,
    Setting,
    Task,
    check_batch,
    serve,
)


def open_epoch(task: Task) -> Epoch:
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    class Images(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: int) -> tuple[Pixels, int]:
            return transform(super().__getitem__(index), task.setting)

    samples = task.samples()
    shards = task.scratch / "mds"
    write(samples, shards, raw=task.setting == "raw256")
    dataset = Images(
        local=str(shards),
        shuffle=True,
        batch_size=BATCH_SIZE,
        epoch_size=task.repeats(len(samples)) * len(samples),
    )
    loader: Any = DataLoader(
        dataset, batch_size=BATCH_SIZE, num_workers=task.num_workers, persistent_workers=True
    )
    return lambda: sum(check_batch(images, labels) for images, labels in loader)


def write(samples: list[tuple[Path, int]], shards: Path, *, raw: bool) -> None:
    from streaming import MDSWriter

    image = f"ndarray:uint8:{STORED_PIXELS},{STORED_PIXELS},3" if raw else "bytes"
    with MDSWriter(out=str(shards), columns={"image": image, "label": "int"}) as writer:
        for path, label in samples:
            content = np.asarray(open_rgb(path)) if raw else path.read_bytes()
            writer.write({"image": content, "label": label})


def transform(sample: dict[str, Any], setting: Setting) -> tuple[Pixels, int]:
    image = sample["image"]
    if setting == "raw256":
        return crop(image), sample["label"]
    return augment(open_rgb(io.BytesIO(image)), setting), sample["label"]


if __name__ == "__main__":
    serve(__doc__, open_epoch, ["mosaicml-streaming", "torch", "pillow"])
