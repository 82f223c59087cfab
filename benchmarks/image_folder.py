"""The folders of JPEGs that the benchmarks of the data path start from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.rivals.crops import middle_square, open_rgb
from benchmarks.rivals.rounds import STORED_PIXELS

NUM_CLASSES = 10
_SUFFIXES = (".jpeg", ".jpg")
_QUALITY = 95


def find_images(folder: Path) -> list[Path]:
    """All JPEGs below `folder`; raises `ValueError` if there are too few."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if len(found) < NUM_CLASSES:
        raise ValueError(
            f"{folder} has {len(found)} images ending in {' or '.join(_SUFFIXES)}; expected at "
            f"least {NUM_CLASSES}: give --images the folder of unpacked JPEGs"
        )
    return found


def link_images(images: Sequence[Path], root: Path, num_images: int) -> Path:
    """Arrange as many as `train/CLASS/*`, over and over under other names; returns `root`.

    They are dealt out to `NUM_CLASSES` classes. `val/CLASS/*` has one of each, as it must not be
    empty.
    """
    for number in range(num_images):
        source = images[number % len(images)].resolve()
        name = f"{number:06d}{source.suffix}"
        for split in ("train", "val") if number < NUM_CLASSES else ("train",):
            link = root / split / f"class-{number % NUM_CLASSES}" / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source)
    return root


def shrink_images(images: Sequence[Path], folder: Path) -> list[Path]:
    """Their middle squares as JPEGs of 256×256, quality 95, as a script with Pillow makes them."""
    folder.mkdir(parents=True)
    shrunk = [folder / f"{number:06d}.jpg" for number in range(len(images))]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(_shrink, images, shrunk, chunksize=16))
    return shrunk


def _shrink(source: Path, target: Path) -> None:
    middle_square(open_rgb(source), STORED_PIXELS).save(target, quality=_QUALITY)
