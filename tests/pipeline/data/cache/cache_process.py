"""A job that uses a shard cache, as a process of its own.

    python -m tests.pipeline.data.cache.cache_process URL CACHE MAX_BYTES SHARD,SHARD,…

Reads the shards of `val` one after another, compares each with its hash, and prints `ready`, the
number of each shard, and in the end what it cost.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from pathlib import Path

from data_prep.shard_set.manifest import read_manifest
from pipeline.data.cache.shard_cache import ShardCache


def main() -> None:
    url, directory, max_bytes, numbers = sys.argv[1:]
    with ShardCache(
        url, Path(directory), max_bytes=int(max_bytes), timeout_seconds=30.0, attempts=3
    ) as cache:
        split = read_manifest(cache.stage_manifest()).split("val")
        _print_line("ready")
        for number in map(int, numbers.split(",")):
            file = cache.descriptor("val", number)
            content = os.pread(file, split.shard_bytes[number] + 1, 0)
            assert hashlib.sha256(content).hexdigest() == split.shard_sha256[number]
            cache.release("val", number)
            _print_line(str(number))
        _print_line(json.dumps(dataclasses.asdict(cache.cost)))


def _print_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
