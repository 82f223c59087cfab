"""Start and memory of the data path with the index of ImageNet: 1,281,167 samples, 1,282 shards.

    python -m benchmarks.start --images DIR [--rounds 5] [--json PATH]

1,000 images of DIR are converted to one shard, which then stands for all: 1,282 links to it, and an
index of as many rows. Each of 2 ranks, fresh processes, opens the shard set and reads until it has
its first batch of 128: once from the start of training, once from the middle of epoch 45, as after
a kill. The seconds leave out imports. What the index takes of each rank's memory is the private
memory (USS) beyond that of the same ranks on the one shard alone, both ranks alive.

    python -m benchmarks.start --rank SHARDS NUM_STEPS_BEFORE RANK     # is one of those ranks
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.competition import Process
from benchmarks.image_folder import find_images, link_images
from benchmarks.measurement import parser, report, shard_folder, spread
from benchmarks.memory import private_bytes
from benchmarks.rivals.rounds import BATCH_SIZE, STORED_PIXELS
from data_prep.shard_set.files import sha256_of
from data_prep.shard_set.index import read_checksums, read_index
from data_prep.shard_set.manifest import Split, read_manifest, write_manifest
from pipeline.config.data import DataConfig
from pipeline.config.recipes import alexnet_2012
from pipeline.config.schema import Config
from pipeline.data.open import open_data
from pipeline.data.order.partition import steps_of_epoch

NUM_SAMPLES = 1_281_167
NUM_RANKS = 2
RESUME_EPOCHS = 44.5
_DEADLINE_SECONDS = 120.0


def enlarge(shards: Path, large: Path, num_samples: int = NUM_SAMPLES) -> Path:
    """A shard set whose train split has the samples of `shards` over and over, by links."""
    manifest = read_manifest(shards)
    split = manifest.split("train")
    assert len(split.filenames) == 1
    index = read_index(shards, split)
    num_shards = -(-num_samples // len(index))
    names = tuple(f"train-{number:06d}.tar" for number in range(num_shards))
    large.mkdir()
    for name in names:
        os.link(shards / split.filenames[0], large / name)
    mean_image = manifest.statistics.mean_image_filename
    assert mean_image is not None
    os.link(shards / mean_image, large / mean_image)
    rows = np.resize(index, num_samples)
    rows["shard"] = np.arange(num_samples) // len(index)
    np.save(large / split.index_filename, rows)
    assert split.checksums_filename is not None
    checksums = np.resize(read_checksums(shards, split), num_samples)
    np.save(large / split.checksums_filename, checksums)
    train = Split(
        name="train",
        num_samples=num_samples,
        filenames=names,
        shard_lengths=tuple(np.bincount(rows["shard"]).tolist()),
        shard_bytes=split.shard_bytes * num_shards,
        shard_sha256=split.shard_sha256 * num_shards,
        index_filename=split.index_filename,
        index_sha256=sha256_of(large / split.index_filename),
        checksums_filename=split.checksums_filename,
        checksums_sha256=sha256_of(large / split.checksums_filename),
    )
    write_manifest(large, dataclasses.replace(manifest, splits={"train": train}))
    return large


def be_rank(shards: Path, start_step: int, rank: int) -> None:
    """Open the shard set, say how long the first batch took, and stay until the input ends."""
    begin = time.perf_counter()
    config = config_of(shards)
    with contextlib.ExitStack() as resources:
        data = open_data(config, torch.device("cpu"), resources)
        source = data.open_files(data.plan(NUM_RANKS), rank)
        loader = resources.enter_context(source(start_step, start_step + 1000))
        next(loader)
        seconds = time.perf_counter() - begin
        while (
            loader.queued_batches < config.data.prefetch_batches
        ):  # memory is compared with all batches in use
            time.sleep(0.01)
        print(json.dumps({"seconds": seconds}), flush=True)
        sys.stdin.read()


def config_of(shards: Path) -> Config:
    return dataclasses.replace(
        alexnet_2012(),
        data=DataConfig(shards=str(shards)),
        global_batch_size=BATCH_SIZE * NUM_RANKS,
    )


def start(shards: Path, start_step: int) -> tuple[float, float]:
    """Start all ranks; the seconds of the slowest, and the largest private memory in bytes."""
    with contextlib.ExitStack() as stack:
        ranks = [
            stack.enter_context(
                Process(
                    [sys.executable, "-m", "benchmarks.start", "--rank", shards, start_step, rank]
                )
            )
            for rank in range(NUM_RANKS)
        ]
        seconds = [rank.answer(_DEADLINE_SECONDS)["seconds"] for rank in ranks]
        return max(seconds), max(private_bytes(rank.pid) for rank in ranks)


def figures(shards: Path, large: Path, rounds: int) -> dict[str, Any]:
    num_samples = read_manifest(large).split("train").num_samples
    steps_per_epoch = steps_of_epoch(num_samples, BATCH_SIZE * NUM_RANKS, drop_last=True)
    resume_step = int(RESUME_EPOCHS * steps_per_epoch)
    first, resumed, small = [], [], []
    for _ in range(rounds):
        small.append(start(shards, 0))
        first.append(start(large, 0))
        resumed.append(start(large, resume_step))
    extra = [large_one[1] - small_one[1] for small_one, large_one in zip(small, first, strict=True)]
    return {
        "samples": num_samples,
        "index_bytes": (large / read_manifest(large).split("train").index_filename).stat().st_size,
        "seconds_to_first_batch": {
            "at the start": spread([seconds for seconds, _ in first]),
            "resumed": spread([seconds for seconds, _ in resumed]),
            "of one shard": spread([seconds for seconds, _ in small]),
        },
        "private_bytes_of_rank": {
            "all": spread([used for _, used in first], 0),
            "of one shard": spread([used for _, used in small], 0),
            "for the index": spread(extra, 0),
        },
    }


def main() -> None:
    if sys.argv[1:2] == ["--rank"]:
        be_rank(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
        return
    options_parser = parser(__doc__)
    options_parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    options_parser.add_argument("--rounds", type=int, default=5)
    options = options_parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        images = link_images(find_images(options.images), root / "images", 1000)
        shards = shard_folder(images, root / "shards", encoding="jpeg", size=STORED_PIXELS)
        large = enlarge(shards, root / "large")
        found = figures(shards, large, options.rounds)
    claim = "start and memory with the index of ImageNet: less than 50 MB a rank for the index"
    report({"claim": claim, **found}, options.json)


if __name__ == "__main__":
    main()
