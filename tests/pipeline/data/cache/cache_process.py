"""A job that uses a shard cache, as a process of its own.

    python -m tests.pipeline.data.cache.cache_process URL CACHE MAX_BYTES SHARD,SHARD,…

Reads the shards of `val` one after another, compares each with its hash, and prints `ready`, the
number of each shard.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from pathlib import Path
from typing import Any

from data_prep.shard_set.manifest import Split, read_manifest
from pipeline.config.data import DataConfig
from pipeline.data.cache import cache_directory
from pipeline.data.cache.remote import Content
from pipeline.data.cache.shard_cache import ShardCache
from tests.machine import DEADLINE_SECONDS


def main() -> None:
    url, directory, max_bytes, numbers = sys.argv[1:]
    vars(cache_directory)["_GLANCE_SECONDS"] = DEADLINE_SECONDS  # a busy machine's
    limits = {"fetch_timeout_seconds": DEADLINE_SECONDS, "fetch_attempts": 3}
    cache = ShardCache(make_config(url, Path(directory), int(max_bytes), **limits))
    folder = cache.stage_manifest()
    split = read_manifest(folder).split("val")
    _print_line("ready")
    for number in map(int, numbers.split(",")):
        path = folder / split.filenames[number]
        file = cache.open_file(path, content_of(split, number), threading.Event())
        content = os.pread(file, split.shard_bytes[number] + 1, 0)
        assert hashlib.sha256(content).hexdigest() == split.shard_sha256[number]
        os.close(file)
        _print_line(str(number))


def make_config(
    url: str = "https://host",
    directory: Path = Path("/cache"),
    max_bytes: int | None = None,
    **fetch: Any,
) -> DataConfig:
    """For the shard set at `url`, staged into `directory`."""
    return DataConfig(
        shards=url, reader="remote", cache_dir=str(directory), cache_bytes=max_bytes, **fetch
    )


def content_of(split: Split, number: int) -> Content:
    """What a shard must hold."""
    return Content(num_bytes=split.shard_bytes[number], sha256=split.shard_sha256[number])


def _print_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
