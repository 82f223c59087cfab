"""Reads a shard's structure from the shard itself, and what is wrong with it."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data_prep.assignment import KEY_PATTERN
from data_prep.shards import BLOCK_BYTES, LABEL_SUFFIX


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
class Member:
    """One file in the archive."""

    name: str
    offset: int
    """Of its content."""
    num_bytes: int

    @property
    def key(self) -> str:
        return self.name.partition(".")[0]

    @property
    def suffix(self) -> str:
        return self.name.partition(".")[2]


@dataclass(frozen=True, slots=True)
class ArchivedSample:
    """A sample that is whole: an image and, right behind it, its label."""

    key: str
    image: Member
    label: Member


def read_members(path: Path) -> tuple[list[Member], list[Damage]]:
    """Walk through the headers of a shard, as far as they can be followed."""
    damages: list[Damage] = []
    with path.open("rb") as file:
        members = list(_walk(file, path, damages))
    return members, damages


def _walk(file: BinaryIO, path: Path, damages: list[Damage]) -> Iterator[Member]:
    """Yield the members that are whole; tell `damages` of what ends the walk too early."""
    file_bytes = path.stat().st_size
    position, before = 0, "the start"
    while True:
        file.seek(position)
        header = file.read(BLOCK_BYTES)
        if header == bytes(BLOCK_BYTES):
            return
        if len(header) < BLOCK_BYTES:
            damages.append(Damage(path.name, f"cut off after {before}: it has no end mark"))
            return
        try:
            info = tarfile.TarInfo.frombuf(header, "ascii", "backslashreplace")
        except tarfile.HeaderError as error:
            key = header.split(b".")[0].decode("ascii", "replace")
            what = f"damaged tar header after {before} ({error}): what follows cannot be read"
            damages.append(Damage(path.name, what, key if KEY_PATTERN.fullmatch(key) else None))
            return
        member = Member(info.name, position + BLOCK_BYTES, info.size)
        if member.offset + member.num_bytes > file_bytes:
            what = f"cut off in {member.name}, {file_bytes - member.offset} of {info.size} bytes"
            damages.append(Damage(path.name, what, member.key))
            return
        yield member
        before = member.name
        position = member.offset + -(-member.num_bytes // BLOCK_BYTES) * BLOCK_BYTES


def pair_members(
    file: str, members: Sequence[Member], image_suffix: str
) -> tuple[list[ArchivedSample], list[Damage]]:
    """Find the samples among the members of a shard, and the members that belong to none."""
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
        Damage(file, _describe(suffixes, image_suffix), key) for key, suffixes in single.items()
    ]
    damages += [
        Damage(file, "the key has characters other than A-Z a-z 0-9 _ -", sample.key)
        for sample in samples
        if not KEY_PATTERN.fullmatch(sample.key)
    ]
    return samples, damages


def _describe(suffixes: Sequence[str], image_suffix: str) -> str:
    """What is wrong with a key that has members which form no sample."""
    if set(suffixes) == {image_suffix}:
        return f"it has no .{LABEL_SUFFIX}"
    if set(suffixes) == {LABEL_SUFFIX}:
        return f"it has no .{image_suffix}"
    if set(suffixes) == {image_suffix, LABEL_SUFFIX}:
        return f"its .{image_suffix} and .{LABEL_SUFFIX} are not next to each other, in this order"
    return f"unexpected member .{', .'.join(suffixes)}; expected .{image_suffix}, .{LABEL_SUFFIX}"
