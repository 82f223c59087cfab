"""Finds all that is wrong with a shard set, without trusting any part of it to be right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.shard_set.index import INDEX_DTYPE, find_array
from data_prep.shard_set.manifest import ADOPTED, MANIFEST_NAME, Manifest, read_manifest
from data_prep.verify.verify_shard import Array, Damage, ShardCheck, check_shard


def find_damages(
    shards: Path, *, full: bool, num_threads: int, show: Callable[[int, int], None]
) -> list[Damage]:
    """All damages of a shard set, in the order of its files; none if it is whole.

    Without `full`, reads the manifest, the indexes and the headers in the shards; with it, also
    every byte. `show` gets how many shards are done, and of how many.
    Raises `ShardSetError` if there is no manifest to go by.
    """
    manifest = read_manifest(shards)
    damages = _check_names(shards, manifest)
    checks = _plan(shards, manifest, full, damages)
    seen: dict[tuple[str, str], str] = {}
    with ThreadPoolExecutor(num_threads) as threads:
        for done, (check, (keys, found)) in enumerate(
            zip(checks, threads.map(check_shard, checks), strict=True), 1
        ):
            damages += found
            if manifest.source != ADOPTED:  # others begin anew in each tar
                damages += _check_duplicates(check, keys, seen)
            show(done, len(checks))
    return damages


def _plan(shards: Path, manifest: Manifest, full: bool, damages: list[Damage]) -> list[ShardCheck]:
    """The checks of all shards; adds to `damages` what is wrong with the other files."""

    def load(
        name: str | None, sha256: str | None, dtype: np.dtype[Any], *shape: int | None
    ) -> Array | None:
        """An .npy file, unless there is none to expect or it is unusable."""
        if name is None:
            return None
        array, fault = find_array(shards / name, sha256, dtype, shape)
        if fault is not None:
            damages.append(Damage(name, fault))
        return array

    mean, size = manifest.statistics, (manifest.image_height, manifest.image_width)
    load(mean.mean_image_filename, mean.mean_image_sha256, np.dtype(np.float32), *size, 3)
    checks: list[ShardCheck] = []
    for split in manifest.splits.values():
        count, crc = split.num_samples, np.dtype(np.uint32)
        index = load(split.index_filename, split.index_sha256, INDEX_DTYPE, count)
        checksums = load(split.checksums_filename, split.checksums_sha256, crc, count)
        stops = np.cumsum(split.shard_lengths).tolist()
        for number, rows in enumerate(map(slice, [0, *stops[:-1]], stops)):
            checks.append(
                ShardCheck(
                    path=split.shard_paths(shards)[number],
                    split=split,
                    number=number,
                    index=None if index is None else index[rows],
                    checksums=None if checksums is None else checksums[rows],
                    manifest=manifest,
                    full=full,
                )
            )
    return checks


def _check_names(shards: Path, manifest: Manifest) -> list[Damage]:
    known = {name for split in manifest.splits.values() for name in split.filenames}
    extra = sorted(path.name for path in shards.glob("*.tar") if path.name not in known)
    return [Damage(name, f"{MANIFEST_NAME} does not know this shard") for name in extra]


def _check_duplicates(
    check: ShardCheck, keys: Sequence[str], seen: dict[tuple[str, str], str]
) -> list[Damage]:
    """Keys that came before in the same split; adds those of this shard to `seen`."""
    damages = []
    for key in keys:
        if (before := seen.get((check.split.name, key))) is not None:
            what = f"duplicate key: it is in {before} already"
            damages.append(Damage(check.path.name, what, key))
        seen[check.split.name, key] = check.path.name
    return damages
