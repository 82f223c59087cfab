"""Finds all that is wrong with one shard."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from data_prep.shard_set.codec import codec_of
from data_prep.shard_set.files import describe, sha256_of
from data_prep.shard_set.foreign_tar import FieldNames, ForeignTarError, walk_samples
from data_prep.shard_set.keys import KEY_PATTERN
from data_prep.shard_set.manifest import ADOPTED, LABEL_SUFFIX, Manifest, Split
from data_prep.shard_set.tar_walk import DamagedTarError, Member, reading, walk_tar

Array = npt.NDArray[Any]

_MAX_DIGITS = 9  # of a label; with thousands of them int() fails


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong."""

    file: str
    what: str
    key: str | None = None
    """Of the sample it concerns, if it is one."""

    def __str__(self) -> str:
        return f"{self.file}: {f'key {self.key}: ' if self.key is not None else ''}{self.what}"


@dataclass(frozen=True, slots=True)
class ArchivedSample:
    """A sample that is whole."""

    key: str
    image: Member
    label: Member | int
    """Right behind the image; or, of a tar that another program wrote, the label itself."""


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
    """The same; raises `OSError` if the shard cannot be read."""
    name, split, number = check.path.name, check.split, check.number
    num_bytes = check.path.stat().st_size
    if check.manifest.source == ADOPTED:
        samples, damages = _read_foreign(check.path, check.manifest)
    else:
        members, damages = _read_members(check.path)
        samples, unpaired = _pair_members(name, members, codec_of(check.manifest.encoding).suffix)
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
    return [sample.key for sample in samples], damages


def _read_foreign(path: Path, manifest: Manifest) -> tuple[list[ArchivedSample], list[Damage]]:
    """The samples of an adopted tar, as far as they can be followed."""
    options: Mapping[str, Any] = manifest.options
    fields = FieldNames(image=options["image"], label=options["label"])
    label_of: dict[int | str, int] = {name: n for n, name in enumerate(manifest.class_names)}
    label_of |= {n + options["first_label"]: n for n in range(manifest.num_classes)}
    samples: list[ArchivedSample] = []
    try:
        for found in walk_samples(path, fields):
            label = label_of.get(found.label, manifest.num_classes)
            samples.append(ArchivedSample(found.key, found.image, label))
    except ForeignTarError as error:
        return samples, [Damage(path.name, str(error))]
    return samples, []


def _read_members(path: Path) -> tuple[list[Member], list[Damage]]:
    """Walk through the headers of a shard as far as possible."""
    members: list[Member] = []
    with path.open("rb") as file:
        try:
            members.extend(walk_tar(reading(file.fileno()), 0, path.stat().st_size))
        except DamagedTarError as error:
            key = (error.member_name or "").partition(".")[0]
            known = key if KEY_PATTERN.fullmatch(key) else None
            return members, [Damage(path.name, str(error), known)]
    return members, []


def _pair_members(
    file: str, members: Sequence[Member], image_suffix: str
) -> tuple[list[ArchivedSample], list[Damage]]:
    """Find the samples among the members of a shard, and the members that are part of none."""
    samples: list[ArchivedSample] = []
    single: dict[str, list[str]] = {}
    rest = list(reversed(members))
    while rest:
        member = rest.pop()
        if (
            member.suffix == image_suffix
            and rest
            and rest[-1].name == f"{member.key}.{LABEL_SUFFIX}"
        ):
            samples.append(ArchivedSample(member.key, member, rest.pop()))
        else:
            single.setdefault(member.key, []).append(member.suffix)
    damages = [
        Damage(file, _describe_single(suffixes, image_suffix), key)
        for key, suffixes in single.items()
    ]
    damages += [
        Damage(file, "the key has characters other than A-Z a-z 0-9 _ -", sample.key)
        for sample in samples
        if not KEY_PATTERN.fullmatch(sample.key)
    ]
    return samples, damages


def _describe_single(suffixes: Sequence[str], image_suffix: str) -> str:
    """What is wrong with a key whose members do not form a sample."""
    if set(suffixes) == {image_suffix}:
        return f"it has no .{LABEL_SUFFIX}"
    if set(suffixes) == {LABEL_SUFFIX}:
        return f"it has no .{image_suffix}"
    if set(suffixes) == {image_suffix, LABEL_SUFFIX}:
        return f"its .{image_suffix} and .{LABEL_SUFFIX} are not next to each other, in this order"
    return f"unexpected member .{', .'.join(suffixes)}; expected .{image_suffix}, .{LABEL_SUFFIX}"


def _check_index(check: ShardCheck, samples: Sequence[ArchivedSample]) -> list[Damage]:
    """Compare the places of the images with the index; both have as many rows."""
    if check.index is None:
        return []
    rows = check.index[["shard", "offset", "num_bytes"]].tolist()
    return [
        Damage(
            check.path.name,
            f"the index has it at shard, offset, bytes = {row}; it is at {place}",
            sample.key,
        )
        for row, sample in zip(rows, samples, strict=True)
        if row != (place := (check.number, sample.image.offset, sample.image.num_bytes))
    ]


def _check_contents(check: ShardCheck, samples: Sequence[ArchivedSample]) -> list[Damage]:
    """Read all samples: labels, checksums, and whether the images decode."""
    is_whole = len(samples) == check.split.shard_lengths[check.number]
    with check.path.open("rb") as file:
        return [
            Damage(check.path.name, what, sample.key)
            for row, sample in enumerate(samples)
            for what in _find_faults(
                check,
                row if is_whole else None,  # else there is no telling which row is whose
                _read(file.fileno(), sample.image),
                _read(file.fileno(), sample.label),
            )
        ]


def _read(file: int, what: Member | int) -> bytes:
    if isinstance(what, int):
        return b"%d" % what
    return os.pread(file, what.num_bytes, what.offset)


def _find_faults(check: ShardCheck, row: int | None, image: bytes, label: bytes) -> Iterator[str]:
    """What is wrong with a sample; `row` is its row of the index, or None if that is unknown."""
    manifest = check.manifest
    index, checksums = (None, None) if row is None else (check.index, check.checksums)
    if not label.isdigit() or len(label) > _MAX_DIGITS or int(label) >= manifest.num_classes:
        yield f"its label is {label[:20]!r}; expected a number below {manifest.num_classes}"
    elif index is not None and int(label) != index["label"][row]:
        yield f"its label is {int(label)}, in the index {index['label'][row]}"
    try:
        height, width, _ = codec_of(manifest.encoding).decode(image).shape
    except (MemoryError, ValueError) as error:
        yield f"its image does not decode: {describe(error)}"
        return
    size = manifest.image_size
    if size is not None and size != (height, width):
        yield f"its image is {height}×{width}; expected {size[0]}×{size[1]}"
    elif checksums is not None and zlib.crc32(image) != checksums[row]:
        yield "its image is not the one that was written (CRC-32)"
