"""Adopting tars of others, beside converting them; and training's reader on both.

    python -m benchmarks.sources --images DIR [--rounds 5] [--copies 5] [--json PATH]

DIR has JPEGs, such as the 1,000 of the ImageNet sample; each goes in that many times. They are put
into tars by webdataset's own ShardWriter and into Parquet files as the Hugging Face Hub has them,
and each round reads, adopts and converts all, start of the command included: bytes a second of the
tars read from memory, of `adopt` on them, of `shard webdataset` on them, and of `shard parquet`.
Then the reader of training takes random resized crops from the adopted tars and from the shard set
made of them, in turn: images a second. Ratios are taken round by round.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import webdataset

from benchmarks.image_folder import find_images
from benchmarks.measurement import parser, report, spread
from pipeline.config.augment import AugmentConfig
from pipeline.config.data import DataConfig
from pipeline.config.recipes import cifar10
from pipeline.data.open import open_data

CROP_PIXELS, BATCH_SIZE = 224, 100
SAMPLES_PER_TAR = 500
NUM_CLASSES = 10


def write_inputs(images: Sequence[Path], copies: int, root: Path) -> tuple[Path, Path]:
    """The images as tars and as Parquet files; the first tenth is val, too."""
    tars, parquet = root / "tars", root / "parquet"
    tars.mkdir()
    parquet.mkdir()
    contents = [path.read_bytes() for path in images]
    for split, rows in (("train", contents * copies), ("val", contents[: len(contents) // 10])):
        pattern = str(tars / f"{split}-%04d.tar")
        labels = [row % NUM_CLASSES for row in range(len(rows))]
        with webdataset.ShardWriter(pattern, maxcount=SAMPLES_PER_TAR, verbose=0) as writer:
            for row, content in enumerate(rows):
                writer.write({"__key__": f"{row:07d}", "jpg": content, "cls": labels[row]})
        column = pa.array([{"bytes": content, "path": "x.jpg"} for content in rows])
        table = pa.table({"image": column, "label": labels})
        pq.write_table(table, parquet / f"{split}-00000-of-00001.parquet", row_group_size=100)
    return tars, parquet


def read_all(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


def command(*arguments: object) -> None:
    words = [sys.executable, "-m", "data_prep", *map(str, arguments)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def images_per_second(shards: Path, num_steps: int) -> float:
    """Of training's reader, without training."""
    augment = AugmentConfig(crop_pixels=CROP_PIXELS, crop_place="random_resized")
    config = dataclasses.replace(
        cifar10(),
        augment=augment,
        data=DataConfig(shards=str(shards)),
        global_batch_size=BATCH_SIZE,
    )
    with contextlib.ExitStack() as resources:
        data = open_data(config, torch.device("cpu"), resources)
        loader = resources.enter_context(data.open_files(data.plan(1), 0)(0, num_steps))
        next(loader)
        begin = time.perf_counter()
        count = sum(len(batch.labels) for batch in loader)
        return count / (time.perf_counter() - begin)


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--images", type=Path, required=True)
    options_parser.add_argument("--rounds", type=int, default=5)
    options_parser.add_argument("--copies", type=int, default=5)
    options = options_parser.parse_args()
    images = find_images(options.images)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        tars, parquet = write_inputs(images, options.copies, root)
        num_bytes = sum(path.stat().st_size for path in tars.iterdir())
        adopted, made = root / "adopted", root / "made"
        doers: dict[str, Callable[[], None]] = {
            "read": lambda: read_all(tars),
            "adopt": lambda: command("adopt", tars, "--output", adopted),
            "shard webdataset": lambda: command(
                "shard", "webdataset", "--input", tars, "--output", made
            ),
            "shard parquet": lambda: command(
                "shard", "parquet", "--input", parquet, "--output", root / "from-parquet"
            ),
        }
        taken: dict[str, list[float]] = {name: [] for name in doers}
        rates: dict[str, list[float]] = {"adopted": [], "made": []}
        num_steps = max(2, len(images) * options.copies // BATCH_SIZE)
        for _ in range(options.rounds):
            for folder in (adopted, made, root / "from-parquet"):
                shutil.rmtree(folder, ignore_errors=True)
            for name, do in doers.items():
                begin = time.perf_counter()
                do()
                taken[name].append(time.perf_counter() - begin)
            for name, folder in (("adopted", adopted), ("made", made)):
                rates[name].append(images_per_second(folder, num_steps))
    figures = {
        "claim": "tars of others are adopted faster than converted, and read as fast as our shards",
        "images": len(images) * options.copies,
        "bytes": num_bytes,
        "megabytes_per_second": {
            name: spread([num_bytes / 1e6 / each for each in times], 1)
            for name, times in taken.items()
        },
        "adopt_seconds_of_convert": spread(
            [a / b for a, b in zip(taken["adopt"], taken["shard webdataset"], strict=True)]
        ),
        "parquet_seconds_of_tars": spread(
            [a / b for a, b in zip(taken["shard parquet"], taken["shard webdataset"], strict=True)]
        ),
        "reader_images_per_second": {name: spread(each, 1) for name, each in rates.items()},
        "reader_adopted_of_made": spread(
            [a / b for a, b in zip(rates["adopted"], rates["made"], strict=True)]
        ),
    }
    report(figures, options.json)


if __name__ == "__main__":
    main()
