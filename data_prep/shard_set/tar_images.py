"""All images of a tar, WebDataset or not, with labels where it has them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.shard_set.foreign_tar import (
    LABEL_SUFFIXES,
    ForeignTarError,
    check_plain,
    find_label,
    take_apart,
    walk_files,
)
from data_prep.shard_set.image_files import BEGIN_BYTES, is_image
from data_prep.shard_set.tar_walk import Member, ReadAt, reading

_PIXELS = "npy"
"""How shard sets name images that are stored as pixels."""


@dataclass(frozen=True, slots=True)
class TarImage:
    """One image of a tar."""

    member: Member
    label: int | str | None
    """A number, or the name of a class; None if the image has no label of its own."""


def walk_images(path: Path) -> Iterator[TarImage]:
    """Yield the images of a tar in their order; reads headers, labels and first bytes.

    Hidden members are left out. Raises `ForeignTarError` if the tar is damaged or compressed.
    """
    with path.open("rb", buffering=0) as file:
        read = reading(file.fileno())
        check_plain(path, read(BEGIN_BYTES, 0))
        for group in _samples(walk_files(path, read)):
            key = take_apart(group[0].name)[0]
            members = {take_apart(member.name)[1]: member for member in group}
            images = [
                member for suffix, member in members.items() if _is_image(read, suffix, member)
            ]
            label = None
            if len(images) == 1 and not members.keys().isdisjoint((*LABEL_SUFFIXES, "json")):
                with contextlib.suppress(ForeignTarError):  # of another kind, or damaged
                    label = find_label(f"{path}: {key}", path, read, members, None)
            yield from (TarImage(member, label) for member in images)


def _samples(files: Iterator[Member]) -> Iterator[list[Member]]:
    """The members of each key that lie side by side; those before damage, too."""
    group = list[Member]()
    try:
        for member in files:
            if group and take_apart(member.name)[0] != take_apart(group[0].name)[0]:
                yield group
                group = []
            group.append(member)
    except ForeignTarError:
        if group:
            yield group
        raise
    if group:
        yield group


def _is_image(read: ReadAt, suffix: str, member: Member) -> bool:
    if take_apart(member.name)[0].rpartition("/")[2] == "":
        return False  # hidden
    return suffix == _PIXELS or is_image(
        member.name, lambda: read(min(BEGIN_BYTES, member.num_bytes), member.offset)
    )
