"""Images a second of conversions with restart markers beside those without, and what they store.

    python -m benchmarks.recoding --images DIR [--rounds 5] [--json PATH]

DIR has JPEGs, such as the 1,000 of the ImageNet sample. 2,000 of them, each twice, are stored as
they are and scaled to 256×256 by our command, start included, in 2 processes. Each round converts
them once with each interval, in turn; ratios to no markers are taken round by round.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.competition import Result
from benchmarks.image_folder import find_images, link_images
from benchmarks.measurement import parser, report, shard_folder_command
from benchmarks.rivals.rounds import STORED_PIXELS
from data_prep.shard_set.manifest import read_manifest

NUM_IMAGES = 2_000
INTERVALS = (0, 1, 2, 4, 8)
"""MCUs between two markers; without any first."""

_SIZES: Mapping[str, int | None] = {"originals": None, "256×256": STORED_PIXELS}


def compare_intervals(
    images: Sequence[Path], scratch: Path, rounds: int, num_images: int = NUM_IMAGES
) -> dict[str, Any]:
    """By what is stored: images a second, and bytes against those without markers."""
    folder = link_images(images, scratch / "images", num_images)
    found: dict[str, Any] = {}
    for what, size in _SIZES.items():
        result, num_bytes = Result(), dict.fromkeys(INTERVALS, 0)
        for _ in range(rounds):
            for restart in INTERVALS:
                rate, num_bytes[restart] = _convert(folder, scratch / "shards", size, restart)
                result.rates.setdefault(_name(restart), []).append(rate)
        plain, *marked = map(_name, INTERVALS)
        figures = result.figures({name: [plain] for name in marked})
        found[what] = {
            **{key: figures[key] for key in ("images_per_second", "ratios")},
            "bytes against the first": {
                _name(restart): round(num_bytes[restart] / num_bytes[0], 3) for restart in INTERVALS
            },
        }
    return found


def _name(restart: int) -> str:
    return f"--restart {restart}"


def _convert(folder: Path, shards: Path, size: int | None, restart: int) -> tuple[float, int]:
    """Images a second, and the bytes of all images."""
    options = ("--restart", restart, "--workers", 2)
    command = shard_folder_command(folder, shards, *options, encoding="jpeg", size=size)
    begin = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - begin
    splits = read_manifest(shards).splits.values()
    indexes = (np.load(shards / split.index_filename) for split in splits)
    num_bytes = sum(int(index["num_bytes"].sum(dtype=np.int64)) for index in indexes)
    shutil.rmtree(shards)
    return sum(split.num_samples for split in splits) / seconds, num_bytes


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    options_parser.add_argument("--rounds", type=int, default=5)
    options = options_parser.parse_args()
    images = find_images(options.images)
    with tempfile.TemporaryDirectory() as scratch:
        found = {
            "claim": "images a second of conversion with restart markers, and bytes, by interval",
            **compare_intervals(images, Path(scratch), options.rounds),
        }
    report(found, options.json)


if __name__ == "__main__":
    main()
