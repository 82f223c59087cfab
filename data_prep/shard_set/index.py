"""The files that a manifest names, checked against it: index, checksums, mean image, shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.shard_set.files import describe, sha256_of
from data_prep.shard_set.manifest import MANIFEST_NAME, ShardSetError, Split, Statistics

INDEX_DTYPE = np.dtype(
    [("shard", "<u4"), ("offset", "<u8"), ("num_bytes", "<u4"), ("label", "<u4")]
)
"""One row a sample, in the order of shards and of members in them.

`shard` counts the split's `filenames`; `offset` and `num_bytes` locate the image member's content
in that tar, so a reader needs one positioned read and no tar parsing.
"""


def remedy(shards: Path) -> str:
    """What to do about damage, for the end of an error."""
    return (
        f"see 'python -m data_prep verify {shards} --full', copy the shard again or convert again"
    )


def read_index(shards: Path, split: Split) -> npt.NDArray[np.void]:
    """Memory-map a split's index, `INDEX_DTYPE[num_samples]`.

    Raises `ShardSetError` if it is missing, damaged or not the one the manifest names, or if a row
    is of a place that is not in its shard.
    """
    path, shape = shards / split.index_filename, (split.num_samples,)
    index = _map_array(path, split.index_sha256, INDEX_DTYPE, shape)
    sizes = np.array([0, *split.shard_bytes], np.uint64)
    room = sizes[np.minimum(index["shard"].astype(np.int64), len(sizes) - 2) + 1]
    is_inside = (index["offset"] <= room) & (index["num_bytes"] <= room - index["offset"])
    is_right = is_inside & (index["shard"] < len(sizes) - 1)
    if not is_right.all():
        row = int(np.flatnonzero(~is_right)[0])
        raise ShardSetError(
            f"{path}: row {row} is {index[row].item()}; expected one of {len(sizes) - 1} shards, "
            "and a place in it: convert the data again"
        )
    return index


def check_labels(labels: npt.NDArray[Any], num_classes: int, where: object) -> None:
    """Raise `ShardSetError` if a sample of `where` is of no class: no network could learn it."""
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ShardSetError(
            f"{where} has labels from {labels.min()} to {labels.max()}; expected 0 to "
            f"{num_classes - 1}: convert the data again"
        )


def read_checksums(shards: Path, split: Split) -> npt.NDArray[np.uint32]:
    """Memory-map the CRC-32 of a split's image members, uint32[num_samples]; raises as above."""
    if split.checksums_filename is None:
        raise ShardSetError(f"{shards} has no checksums: convert the data again")
    path, shape = shards / split.checksums_filename, (split.num_samples,)
    return _map_array(path, split.checksums_sha256, np.dtype(np.uint32), shape)


def read_mean_image(shards: Path, statistics: Statistics) -> npt.NDArray[np.float32]:
    """The mean of the train split's images, float32 H×W×3, 0–255 scale; raises as above."""
    if statistics.mean_image_filename is None:
        raise ShardSetError(
            f"{shards} has no mean image, as its images differ in size: convert it with --size N, "
            "or use --augment.normalize mean_std"
        )
    path, dtype = shards / statistics.mean_image_filename, np.dtype(np.float32)
    return np.array(_map_array(path, statistics.mean_image_sha256, dtype, None))


def _map_array(
    path: Path, sha256: str | None, dtype: np.dtype[Any], shape: tuple[int, ...] | None
) -> npt.NDArray[Any]:
    array, fault = find_array(path, sha256, dtype, shape)
    if array is None or fault is not None:
        raise ShardSetError(f"{path}: {fault}; copy it again or convert the data again")
    return array


def find_array(
    path: Path, sha256: str | None, dtype: np.dtype[Any], shape: tuple[int | None, ...] | None
) -> tuple[npt.NDArray[Any] | None, str | None]:
    """Memory-map an .npy file, unless it is unusable; also returns what is wrong, or None."""
    try:
        array: npt.NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        return None, "missing"
    except Exception as error:  # a damaged header raises anything
        return None, f"not an .npy file: {describe(error)}"
    if array.dtype != dtype or shape not in (None, array.shape):
        found = f"{array.dtype}{list(array.shape)}"
        return None, f"holds {found}; expected {dtype}{list(shape or ())}"
    if sha256_of(path) != sha256:
        return array, f"its sha256 is not the one in {MANIFEST_NAME}"
    return array, None


def check_shard_sizes(shards: Path, split: Split) -> None:
    """Check that every shard of a split is there and as long as the manifest says.

    Cheap (one `stat` a shard); content is checked by `python -m data_prep verify --full`.
    Raises `ShardSetError` naming the first shard that fails.
    """
    for path, expected in zip(split.shard_paths(shards), split.shard_bytes, strict=True):
        try:
            found = path.stat().st_size
        except FileNotFoundError:
            raise ShardSetError(f"shard {path} is missing: copy it back or convert again") from None
        if found != expected:
            raise ShardSetError(
                f"shard {path} has {found} bytes; expected {expected}: "
                "copy it again or convert again"
            )
