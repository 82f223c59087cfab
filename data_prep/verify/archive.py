"""Reads a shard's structure from the shard itself, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.shard_set.keys import KEY_PATTERN
from data_prep.shard_set.manifest import LABEL_SUFFIX
from data_prep.shard_set.tar_walk import DamagedTarError, Member, walk_tar


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong."""

    file: str
    what: str
    key: str | None = None
    """Of the sample it concerns, if it is one."""

    def __str__(self) -> str:
        return f"{self.file}: {f'key {self.key}: ' if self.key is not None else ''}{self.what}"


ArchivedSample = tuple[Member, Member]
"""A sample that is whole: an image and, right behind it, its label."""


def read_members(path: Path) -> tuple[list[Member], list[Damage]]:
    """Walk through the headers of a shard, as far as they can be followed."""
    members: list[Member] = []
    with path.open("rb") as file:
        try:
            members.extend(walk_tar(file.fileno(), 0, path.stat().st_size))
        except DamagedTarError as error:
            key = (error.member_name or "").partition(".")[0]
            known = key if KEY_PATTERN.fullmatch(key) else None
            return members, [Damage(path.name, str(error), known)]
    return members, []


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
            samples.append((member, rest.pop()))
        else:
            single.setdefault(member.key, []).append(member.suffix)
    damages = [
        Damage(file, _describe(suffixes, image_suffix), key) for key, suffixes in single.items()
    ]
    damages += [
        Damage(file, "the key has characters other than A-Z a-z 0-9 _ -", image.key)
        for image, _ in samples
        if not KEY_PATTERN.fullmatch(image.key)
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
