"""Samples in WebDataset tars that other programs wrote, found without unpacking anything.

https://github.com/webdataset/webdataset: members whose names are equal up to the first dot behind
the last slash are one sample, and lie side by side; the rest of a name says what the member is.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.shard_set.tar_walk import DamagedTarError, Member, ReadAt, reading, walk_tar
from data_prep.shard_set.typed import read_json

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
LABEL_SUFFIXES = ("cls", "cls.txt", "class", "cls.json")
_MAX_TEXT_BYTES = 1 << 20
"""Of a label, of JSON or of a name: more than that is none."""
_PAX_LENGTH = re.compile(rb"(\d{1,7}) ")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class ForeignTarError(ValueError):
    """A tar cannot be used; says which sample is in the way, and why."""


@dataclass(frozen=True, slots=True)
class ForeignSample:
    """One sample of a tar."""

    key: str
    """With the folders before it."""
    image: Member
    label: int | str
    """A number, or the name of a class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldNames:
    """Which members of a sample hold what; None looks for the usual ones."""

    image: str | None = None
    """The end of the image member's name, such as `input.jpg`."""
    label: str | None = None
    """The same of the label member, or a field of the sample's JSON."""


def walk_samples(
    path: Path, fields: FieldNames, read: ReadAt | None = None
) -> Iterator[ForeignSample]:
    """Yield the samples of a tar in their order; reads headers, and the members with labels.

    `read` gives bytes of the tar; None opens it.

    Raises `ForeignTarError` if the tar is damaged, compressed, holds no sample, or has a sample
    without an image or a label, with several, or in two places.
    """
    seen: set[str] = set()
    with path.open("rb", buffering=0) as file:
        read = read or reading(file.fileno())
        check_plain(path, read(8, 0))
        key, members = "", dict[str, Member]()
        for member in walk_files(path, read):
            member_key, suffix = take_apart(member.name)
            if not suffix:
                continue
            if member_key != key and members:
                yield _sample(path, read, key, members, fields)
                members = {}
            if member_key != key and member_key in seen:
                raise ForeignTarError(
                    f"{path}: sample {member_key} is there twice, or its members do not lie side "
                    "by side; expected each sample in one place: write the tar again, sorted by "
                    "name (tar --sort=name)"
                )
            if suffix in members:
                raise ForeignTarError(
                    f"{path}: sample {member_key} has two members .{suffix}; expected one"
                )
            key = member_key
            seen.add(key)
            members[suffix] = member
        if members:
            yield _sample(path, read, key, members, fields)
    if not seen:
        raise ForeignTarError(f"{path} holds no samples; expected members KEY.jpg and KEY.cls")


def check_plain(path: Path, begin: bytes) -> None:
    """Raise `ForeignTarError` if the first bytes are those of a compressed file."""
    for magic, name in _COMPRESSED.items():
        if begin.startswith(magic):
            raise ForeignTarError(
                f"{path} is compressed ({name}): images in it have no place that could be read; "
                f"unpack it to a plain tar first"
            )


def walk_files(path: Path, read: ReadAt) -> Iterator[Member]:
    """The plain files of a tar, with the long names that GNU and pax headers give them.

    Raises `ForeignTarError` if it is damaged, or stores a file in a way that gives it no place.
    """
    stop = path.stat().st_size
    long_name: str | None = None
    try:
        for member in walk_tar(read, 0, stop):
            match member.type:
                case tarfile.GNUTYPE_LONGNAME:
                    long_name = _text(path, read, member).rstrip("\0")
                case tarfile.XHDTYPE:
                    long_name = _pax_path(path, _text(path, read, member)) or long_name
                case tarfile.REGTYPE | tarfile.AREGTYPE | tarfile.CONTTYPE:
                    name = (long_name or member.name).removeprefix("./")
                    long_name = None
                    yield Member(name, member.offset, member.num_bytes)
                case tarfile.GNUTYPE_SPARSE:
                    raise ForeignTarError(f"{path}: {member.name} is stored with holes (sparse)")
                case _:  # folders, links, comments: nothing that could be a part of a sample
                    long_name = None if member.type != tarfile.XGLTYPE else long_name
    except DamagedTarError as error:
        raise ForeignTarError(f"{path} is damaged: {error}; copy it again") from None


def _text(path: Path, read: ReadAt, member: Member) -> str:
    if member.num_bytes > _MAX_TEXT_BYTES:
        raise ForeignTarError(
            f"{path}: {member.name} has {member.num_bytes} bytes; expected a short text"
        )
    return read(member.num_bytes, member.offset).decode("utf-8", "surrogateescape")


def _pax_path(path: Path, records: str) -> str | None:
    """The name that a pax header gives the next member."""
    name = None
    position = 0
    raw = records.encode("utf-8", "surrogateescape")
    while position < len(raw):
        length = _PAX_LENGTH.match(raw, position)
        stop = position + int(length[1]) if length else 0
        if length is None or not length.end() <= stop <= len(raw):
            found = raw[position : position + 20]
            raise ForeignTarError(f"{path} is damaged: a pax header holds {found!r}")
        keyword, _, value = raw[length.end() : stop].rstrip(b"\n").partition(b"=")
        if keyword == b"size" or keyword.startswith(b"GNU.sparse."):
            raise ForeignTarError(f"{path}: a member is larger than 8 GiB or stored with holes")
        if keyword == b"path":
            name = value.decode("utf-8", "surrogateescape")
        position = stop
    return name


def take_apart(name: str) -> tuple[str, str]:
    """Key and suffix, as webdataset cuts them; the suffix in small letters."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    is_hidden = not stem
    return f"{folder}{slash}{stem}", "" if is_hidden else suffix.lower()


def _sample(
    path: Path, read: ReadAt, key: str, members: dict[str, Member], fields: FieldNames
) -> ForeignSample:
    where = f"{path}: sample {key}"
    image = _find_image(where, members, fields.image)
    return ForeignSample(key, image, find_label(where, path, read, members, fields.label))


def _find_image(where: str, members: dict[str, Member], asked: str | None) -> Member:
    if asked is not None:
        found = [suffix for suffix in members if suffix == asked.lower()]
    else:
        found = [suffix for suffix in members if suffix in IMAGE_SUFFIXES] or [
            suffix for suffix in members if suffix.rpartition(".")[2] in IMAGE_SUFFIXES
        ]
    if len(found) != 1:
        wanted = f".{asked}" if asked else ", ".join(f".{suffix}" for suffix in IMAGE_SUFFIXES)
        raise ForeignTarError(
            f"{where} has {len(found) or 'no'} images; its members are {_list(members)}, expected "
            f"one of {wanted}: name the image's with --image-field"
        )
    return members[found[0]]


def find_label(
    where: str, path: Path, read: ReadAt, members: dict[str, Member], asked: str | None
) -> int | str:
    """The label of a sample with these members, by their suffixes; raises `ForeignTarError`."""
    if asked is not None and asked.lower() in members:
        return _as_label(where, _text(path, read, members[asked.lower()]))
    if asked is None:
        for suffix in LABEL_SUFFIXES:
            if suffix in members:
                return _as_label(where, _text(path, read, members[suffix]))
    if "json" in members:
        return _label_in_json(where, _text(path, read, members["json"]), asked or "label")
    raise ForeignTarError(
        f"{where} has no label; its members are {_list(members)}, expected .cls, .cls.txt or .json "
        "with a field 'label': name another member, or another field, with --label-field"
    )


def _label_in_json(where: str, text: str, field: str) -> int | str:
    try:
        content: Any = read_json(text)
        label = content[field]
    except ValueError:
        raise ForeignTarError(f"{where}: its .json is damaged") from None
    except (KeyError, TypeError):
        there = f"fields {', '.join(content)}" if isinstance(content, dict) else "no fields"
        raise ForeignTarError(
            f"{where}: its .json has {there}; expected '{field}': name another with --label-field"
        ) from None
    if isinstance(label, bool) or not isinstance(label, int | str):
        raise ForeignTarError(
            f"{where}: field '{field}' of its .json is {label!r}; expected a whole number or the "
            "name of a class"
        )
    return label


def _as_label(where: str, text: str) -> int | str:
    text = text.strip()
    if not text or not text.isprintable():
        raise ForeignTarError(
            f"{where}: its label is {text[:20]!r}; expected a whole number or the name of a class"
        )
    return parse_label(text)


def parse_label(text: str) -> int | str:
    """The number that the text is, or else the text: the name of a class."""
    is_number = text.isascii() and text.removeprefix("-").isdigit() and len(text) < 20
    return int(text) if is_number else text


def _list(members: dict[str, Member]) -> str:
    return ", ".join(f".{suffix}" for suffix in members)
