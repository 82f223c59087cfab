"""How a rival is run: a process that gets ready once and then reads one epoch a request.

The driver starts `python -m benchmarks.rivals.NAME --images FOLDER --scratch DIR --setting SETTING`
and reads one JSON object a line. The first is `{"ready": VERSIONS}`: the data format is written,
everything compiled and one epoch read to warm up; or it is `{"missing": WHY}` where its package is
not installed. Then each line of input has it read one epoch and answer `{"images": N, "seconds":
T}`; it leaves at the end of its input. So one can be tried by hand:

    echo | python -m benchmarks.rivals.folder_pil --images FOLDER --scratch DIR --setting original

This module needs nothing but Python: some rivals only install in an environment of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, get_args

BATCH_SIZE = 128
CROP_PIXELS = 224
STORED_PIXELS = 256
"""Height and width of the images in the settings other than `original`."""

BATCH_SHAPE = (BATCH_SIZE, CROP_PIXELS, CROP_PIXELS, 3)
"""What everyone delivers, in uint8, with one label an image; the epoch's last batch is shorter."""

PLANES_SHAPE = (BATCH_SIZE, 3 * 226 // 2, 226)
"""Of a batch of planes, of luma and of halved chroma: crops of 224 need 226×226 at even places."""

Setting = Literal[
    "original",  # JPEGs of any size: random-resized-crop and flip
    "jpeg256",  # JPEGs of 256×256: random crop and flip
    "raw256",  # pixels of 256×256: random crop and flip
]
SETTINGS: tuple[Setting, ...] = get_args(Setting)


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What one process has to read."""

    images: Path
    """Has `train/CLASS/*`."""
    scratch: Path
    """For the process's own data format: empty, or left by an earlier one of the same kind."""
    setting: Setting
    num_images: int
    """In an epoch of this process: the images of the folder, over and over."""
    num_workers: int
    """Threads or processes that read and decode."""
    num_buffers: int
    """Batches that are written in turn, for those that choose."""
    flip: bool
    """Mirror half of the images, or leave that to the device, for those that choose."""
    restart: int
    """MCUs between restart markers in the JPEGs, 0: as they are, for those that choose."""
    planes: bool
    """Planes in the place of pixels, for those that choose."""
    rank: int
    num_ranks: int

    def samples(self) -> list[tuple[Path, int]]:
        """The images and their labels, each once."""
        classes = sorted(path.name for path in (self.images / "train").iterdir())
        return [
            (path, label)
            for label, name in enumerate(classes)
            for path in sorted((self.images / "train" / name).iterdir())
        ]

    def repeats(self, num_samples: int) -> int:
        """How often the samples are read in an epoch, at least once."""
        return max(1, round(self.num_images / num_samples))


Epoch = Callable[[], int]
"""Reads one epoch; returns how many images it delivered."""


def serve(
    description: str | None,
    open_epoch: Callable[[Task], Epoch],
    packages: Sequence[str],
    settings: Sequence[Setting] = SETTINGS,
) -> None:
    """Be that process; `packages` are the distributions whose versions matter."""
    task = _parse(description, settings)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(**fields: object) -> None:
        answers.write(json.dumps(fields) + "\n")

    try:
        epoch = open_epoch(task)
    except ImportError as error:
        answer(missing=str(error))
        return
    epoch()
    versions = {name: metadata.version(name) for name in packages}
    answer(ready={"python": platform.python_version(), **versions})
    for _ in sys.stdin:
        begin = time.perf_counter()
        num_images = epoch()
        answer(images=num_images, seconds=time.perf_counter() - begin)


def _parse(description: str | None, settings: Sequence[Setting]) -> Task:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--scratch", type=Path, required=True, metavar="DIR")
    parser.add_argument("--setting", choices=settings, required=True)
    parser.add_argument("--num-images", type=int, default=1000, metavar="N")
    parser.add_argument("--num-workers", type=int, default=2, metavar="N")
    parser.add_argument("--num-buffers", type=int, default=1, metavar="N")
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--restart", type=int, default=0, metavar="N")
    parser.add_argument("--planes", action="store_true")
    parser.add_argument("--rank", type=int, default=0, metavar="N")
    parser.add_argument("--num-ranks", type=int, default=1, metavar="N")
    options = parser.parse_args()
    options.scratch.mkdir(parents=True, exist_ok=True)
    return Task(**vars(options))


def check_batch(images: object, labels: object, expected: tuple[int, ...] = BATCH_SHAPE) -> int:
    """The number of images of a batch; raises `ValueError` if it is not what everyone delivers."""
    shape = tuple(getattr(images, "shape", ()))
    kind = str(getattr(images, "dtype", type(images))).removeprefix("torch.")
    num_labels = tuple(getattr(labels, "shape", ()))[:1]
    if shape[1:] != expected[1:] or kind != "uint8" or num_labels != shape[:1]:
        raise ValueError(
            f"a batch of {kind} {shape} with {num_labels} labels; expected uint8 {expected} "
            "or fewer images, with a label each"
        )
    return int(shape[0])
