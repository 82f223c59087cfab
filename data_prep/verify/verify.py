"""Finds all that is wrong with a shard set, without trusting any part of it to be right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from data_prep.shard_set.files import sha256_of
from data_prep.shard_set.index import INDEX_DTYPE
from data_prep.shard_set.manifest import MANIFEST_NAME, Manifest, Split, read_manifest
from data_prep.verify.archive import Damage
from data_prep.verify.verify_shard import Array, ShardCheck, check_shard


def find_damages(
    shards: Path, *, full: bool, num_threads: int, show: Callable[[int, int], None]
) -> list[Damage]:
    """All damages of a shard set, in the order of its files; none if it is whole.

    Without `full`, reads the manifest, the indexes and the headers in the shards; with it, also
    every byte. `show` is told how many shards are done, and of how many.
    Raises `ShardSetError` if there is no manifest to go by.
    """
    manifest = read_manifest(shards)
    damages = _check_names(shards, manifest) + _check_mean_image(shards, manifest)
    checks: list[ShardCheck] = []
    for split in manifest.splits.values():
        checks += _plan(shards, manifest, split, full, damages)
    seen: dict[tuple[str, str], str] = {}
    with ThreadPoolExecutor(num_threads) as threads:
        for done, (check, found) in enumerate(
            zip(checks, threads.map(check_shard, checks), strict=True), 1
        ):
            damages += found.damages
            damages += _check_duplicates(check, found.keys, seen)
            show(done, len(checks))
    return damages


def _check_names(shards: Path, manifest: Manifest) -> list[Damage]:
    known = {name for split in manifest.splits.values() for name in split.filenames}
    extra = sorted(path.name for path in shards.glob("*.tar") if path.name not in known)
    return [Damage(name, f"{MANIFEST_NAME} does not know this shard") for name in extra]


def _check_mean_image(shards: Path, manifest: Manifest) -> list[Damage]:
    damages: list[Damage] = []
    statistics = manifest.statistics
    if (name := statistics.mean_image_filename) is not None:
        shape = (manifest.image_height, manifest.image_width, 3)
        sha256 = statistics.mean_image_sha256
        _load(shards / name, sha256, np.dtype(np.float32), shape, damages)
    return damages


def _plan(
    shards: Path, manifest: Manifest, split: Split, full: bool, damages: list[Damage]
) -> list[ShardCheck]:
    """The checks of a split's shards; tells `damages` what is wrong with its other files."""
    shape = (split.num_samples,)
    index = _load(shards / split.index_filename, split.index_sha256, INDEX_DTYPE, shape, damages)
    checksums = None
    if split.checksums_filename is not None:
        path = shards / split.checksums_filename
        checksums = _load(path, split.checksums_sha256, np.dtype(np.uint32), shape, damages)
    stops = np.cumsum(split.shard_lengths).tolist()
    return [
        ShardCheck(
            path=shards / filename,
            split=split.name,
            number=number,
            num_samples=split.shard_lengths[number],
            num_bytes=split.shard_bytes[number],
            sha256=split.shard_sha256[number],
            index=None if index is None else index[start:stop],
            checksums=None if checksums is None else checksums[start:stop],
            manifest=manifest,
            full=full,
        )
        for number, (filename, start, stop) in enumerate(
            zip(split.filenames, [0, *stops[:-1]], stops, strict=True)
        )
    ]


def _load(
    path: Path,
    sha256: str | None,
    dtype: np.dtype[np.generic],
    shape: tuple[int | None, ...],
    damages: list[Damage],
) -> Array | None:
    """An .npy file, if it can be used at all; tells `damages` what is wrong with it."""
    try:
        array: Array = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        damages.append(Damage(path.name, "missing"))
        return None
    except Exception as error:  # a damaged header raises anything
        damages.append(Damage(path.name, f"not an .npy file: {error}"))
        return None
    if array.dtype != dtype or array.shape != shape:
        what = f"holds {array.dtype}{list(array.shape)}; expected {dtype}{list(shape)}"
        damages.append(Damage(path.name, what))
        return None
    if sha256_of(path) != sha256:
        damages.append(Damage(path.name, f"its sha256 is not the one in {MANIFEST_NAME}"))
    return array


def _check_duplicates(
    check: ShardCheck, keys: Sequence[str], seen: dict[tuple[str, str], str]
) -> list[Damage]:
    """Keys that came before in the same split; adds those of this shard to `seen`."""
    damages = []
    for key in keys:
        if (before := seen.get((check.split, key))) is not None:
            what = f"duplicate key: it is in {before} already"
            damages.append(Damage(check.path.name, what, key))
        seen[check.split, key] = check.path.name
    return damages
