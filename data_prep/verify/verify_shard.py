"""Finds all that is wrong with one shard."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from data_prep.shard_set.codec import codec_of
from data_prep.shard_set.files import sha256_of
from data_prep.shard_set.manifest import Manifest, Split
from data_prep.verify.archive import ArchivedSample, Damage, pair_members, read_members

Array = npt.NDArray[Any]

_MAX_DIGITS = 9  # of a label; with thousands of them int() fails


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardCheck:
    """One shard and what the other files say of it."""

    path: Path
    split: Split
    number: int
    """Of the shard in its split."""
    index: Array | None
    """Its rows of the index, or None if the index is of no use."""
    checksums: Array | None
    manifest: Manifest
    full: bool


Findings = tuple[list[str], list[Damage]]
"""The keys in a shard, and what is wrong with it."""


def check_shard(check: ShardCheck) -> Findings:
    """Find the damages of a shard; with `check.full`, in its contents too."""
    try:
        return _check_readable(check)
    except FileNotFoundError:
        what = "missing"
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
    return [], [Damage(check.path.name, what)]


def _check_readable(check: ShardCheck) -> Findings:
    """The same; raises `OSError` if the disk does not give the shard away."""
    name, split, number = check.path.name, check.split, check.number
    num_bytes = check.path.stat().st_size
    members, damages = read_members(check.path)
    samples, unpaired = pair_members(name, members, codec_of(check.manifest.encoding).suffix)
    damages += unpaired
    if num_bytes != (expected := split.shard_bytes[number]):
        damages.append(Damage(name, f"has {num_bytes} bytes; expected {expected}"))
    if len(samples) != (expected := split.shard_lengths[number]):
        what = f"holds {len(samples)} whole samples; expected {expected}"
        damages.append(Damage(name, what))
    else:
        damages += _check_index(check, samples)
    if check.full:
        damages += _check_contents(check, samples)
        if not damages and sha256_of(check.path) != split.shard_sha256[number]:
            damages = [Damage(name, "its sha256 is wrong, though all its samples are whole")]
    return [image.key for image, _ in samples], damages


def _check_index(check: ShardCheck, samples: Sequence[ArchivedSample]) -> list[Damage]:
    """Compare the places of the images with the index; both have as many rows."""
    if check.index is None:
        return []
    rows = check.index[["shard", "offset", "num_bytes"]].tolist()
    return [
        Damage(
            check.path.name,
            f"the index has it at shard, offset, bytes = {row}; it is at {place}",
            image.key,
        )
        for row, (image, _) in zip(rows, samples, strict=True)
        if row != (place := (check.number, image.offset, image.num_bytes))
    ]


def _check_contents(check: ShardCheck, samples: Sequence[ArchivedSample]) -> list[Damage]:
    """Read all samples: labels, checksums, and whether the images decode."""
    index, checksums = check.index, check.checksums
    if len(samples) != check.split.shard_lengths[check.number]:
        index = checksums = None  # no telling which row is whose
    damages = []
    with check.path.open("rb") as file:
        for row, members in enumerate(samples):
            image, label = (
                os.pread(file.fileno(), member.num_bytes, member.offset) for member in members
            )
            problems = [
                _check_label(label, None if index is None else int(index["label"][row]), check),
                _check_image(image, check.manifest)
                or _check_sum(image, None if checksums is None else int(checksums[row])),
            ]
            damages += [
                Damage(check.path.name, what, members[0].key)
                for what in problems
                if what is not None
            ]
    return damages


def _check_label(content: bytes, expected: int | None, check: ShardCheck) -> str | None:
    num_classes = check.manifest.num_classes
    if not content.isdigit() or len(content) > _MAX_DIGITS or int(content) >= num_classes:
        return f"its label is {content[:20]!r}; expected a number below {num_classes}"
    if expected is not None and int(content) != expected:
        return f"its label is {int(content)}, in the index {expected}"
    return None


def _check_image(content: bytes, manifest: Manifest) -> str | None:
    try:
        pixels = codec_of(manifest.encoding).decode(content)
    except (MemoryError, ValueError) as error:
        return f"its image does not decode: {error}"
    size = (manifest.image_height, manifest.image_width)
    if None not in size and pixels.shape[:2] != size:
        return f"its image is {pixels.shape[0]}×{pixels.shape[1]}; expected {size[0]}×{size[1]}"
    return None


def _check_sum(content: bytes, expected: int | None) -> str | None:
    if expected is not None and zlib.crc32(content) != expected:
        return "its image is not the one that was written (CRC-32)"
    return None
