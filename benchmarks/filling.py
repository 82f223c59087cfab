"""How fast memory is filled with a resident split, from files in the page cache.

    python -m benchmarks.filling SHARDS [--rounds 7] [--json PATH]

SHARDS has pixels or planes, such as those of `data_prep shard synthetic --num-train 4000 --size 256
--encoding yuv420`. A round fills memory with its train split as training does before its first
step, on the CPU: each image is compared with its checksum, copied out of its mapped file into the
loader's buffer, and from there to its place. The time of cores is that of this process, so what
other programs take does not count. Beside it, in turn, the least that could be done: one copy of as
many bytes in memory.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measurement import parser, report, spread
from data_prep.shard_set.codec import codec_of
from data_prep.shard_set.manifest import read_manifest
from pipeline.config.data import DataConfig
from pipeline.config.schema import Config
from pipeline.data.open import open_data
from pipeline.ranks.connect import connect
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.mesh import build_mesh


def fill(config: Config) -> int:
    """Fill memory with the train split, and drop it; returns the number of its images."""
    with (
        contextlib.ExitStack() as resources,
        connect(LaunchEnvironment(), config.distributed) as world,
    ):
        data = open_data(config, world.device, resources)
        mesh = build_mesh(world, "fused", config.distributed.timeout_seconds)
        data.open_batches(data.plan(1), world, mesh, lambda *_: {})
        return data.manifest.split("train").num_samples


def image_bytes(shards: Path) -> int:
    manifest = read_manifest(shards)
    assert manifest.image_size is not None
    pixels = math.prod(manifest.image_size)
    return pixels * 3 // (2 if codec_of(manifest.encoding).is_planar else 1)


def seconds_of(work: Callable[[], object]) -> tuple[float, float]:
    """Of the clock, and of this process's cores."""
    begin, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begin, time.process_time() - used


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("shards", type=Path, metavar="SHARDS")
    options_parser.add_argument("--rounds", type=int, default=7)
    options = options_parser.parse_args()
    config = Config(
        data=DataConfig(shards=str(options.shards), reader="resident"), global_batch_size=100
    )
    num_images = fill(config)  # from here on all is in the page cache
    size = image_bytes(options.shards)
    source = np.ones(num_images * size, np.uint8)
    filling, copying = [], []
    for _ in range(options.rounds):
        filling.append(seconds_of(lambda: fill(config)))
        copying.append(seconds_of(source.copy))
    figures: dict[str, Any] = {
        "claim": "what filling memory takes of a core, beside one copy of its bytes",
        "images": num_images,
        "bytes_of_image": size,
        "images_per_core_second": spread([num_images / cpu for _, cpu in filling], 0),
        "gigabytes_per_core_second": spread(
            [num_images * size / cpu / 1e9 for _, cpu in filling], 2
        ),
        "images_per_second": spread([num_images / wall for wall, _ in filling], 0),
        "one_copy_gigabytes_per_core_second": spread(
            [num_images * size / cpu / 1e9 for _, cpu in copying], 2
        ),
    }
    report(figures, options.json)


if __name__ == "__main__":
    main()
