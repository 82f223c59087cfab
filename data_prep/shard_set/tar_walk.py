"""Walks through the headers of a tar, even one inside another, and trusts none of them."""

from __future__ import annotations

import functools
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

BLOCK_BYTES = tarfile.BLOCKSIZE
_NAME, _SIZE, _CHECKSUM, _TYPE = slice(0, 100), slice(124, 136), slice(148, 156), slice(156, 157)
_PREFIX = 345
"""Where the first part of a long name begins, if there is one."""
_READ_BYTES = 1 << 20
_EMPTY = {b"%d" % kind for kind in range(1, 7)}
"""Types of links, devices, folders and pipes: nothing follows their headers, as `tarfile` reads."""
_ADLER = 65521
"""The lower half of an Adler-32 is 1 and the sum of all bytes, by this modulus."""


class DamagedTarError(ValueError):
    """The walk cannot go on."""

    def __init__(self, what: str, member_name: str | None = None) -> None:
        super().__init__(what)
        self.member_name = member_name
        """Of the member that is damaged, as far as it can be told."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a tar."""

    name: str
    offset: int
    """Of its content, in the file that is read."""
    num_bytes: int
    type: bytes = tarfile.REGTYPE

    @property
    def key(self) -> str:
        return self.name.partition(".")[0]

    @property
    def suffix(self) -> str:
        return self.name.partition(".")[2]


ReadAt = Callable[[int, int], bytes]
"""Gives so many bytes of a file, or what there is of them, from this place on."""


def reading(handle: int) -> ReadAt:
    """Of an open file."""
    return functools.partial(os.pread, handle)


def walk_tar(read: ReadAt, start: int, stop: int) -> Iterator[Member]:
    """Yield the members of the tar in the bytes from `start` to `stop` of a file.

    Reads headers only, by position. Raises `DamagedTarError` where the tar is cut off, even
    between two members, or damaged; a header that became zeros looks like the end mark, but an
    end mark has nothing but zeros behind it.
    """
    position, before = start, "the start"
    while True:
        header = read(max(0, min(BLOCK_BYTES, stop - position)), position)
        if header == bytes(BLOCK_BYTES):
            if not _is_zero(read, position + BLOCK_BYTES, stop):
                raise DamagedTarError(f"it has an end mark after {before}, but more behind it")
            return
        if len(header) < BLOCK_BYTES:
            raise DamagedTarError(f"cut off after {before}: it has no end mark")
        member = _parse(header, position + BLOCK_BYTES, before)
        if (num_there := stop - member.offset) < member.num_bytes:
            what = f"cut off in {member.name}, {num_there} of {member.num_bytes} bytes"
            raise DamagedTarError(what, member.name)
        yield member
        before = member.name
        position = member.offset + -(-member.num_bytes // BLOCK_BYTES) * BLOCK_BYTES


def _is_zero(read: ReadAt, start: int, stop: int) -> bool:
    for position in range(start, stop, _READ_BYTES):
        if read(min(_READ_BYTES, stop - position), position).strip(b"\0"):
            return False
    return True


def _parse(header: bytes, offset: int, before: str) -> Member:
    if (plain := _parse_plain(header)) is not None:
        return _member(plain[0], offset, plain[1], header[_TYPE])
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        if info.size < 0:  # the walk would go back
            raise tarfile.HeaderError("negative size")
    except tarfile.HeaderError as error:
        name = header.split(b"\0")[0].decode("ascii", "replace")
        what = f"damaged tar header after {before} ({error}): what follows cannot be read"
        raise DamagedTarError(what, name) from None
    return _member(info.name, offset, info.size, info.type)


def _member(name: str, offset: int, num_bytes: int, kind: bytes) -> Member:
    return Member(name, offset, 0 if kind in _EMPTY else num_bytes, kind)


def _parse_plain(header: bytes) -> tuple[str, int] | None:
    """Name and size of an intact header that holds nothing unusual; else None.

    `TarInfo.frombuf` takes four times as long, which matters with a million members.
    """
    checksum, size = header[_CHECKSUM], header[_SIZE]
    try:
        total = int(checksum.rstrip(b"\0 "), 8) + sum(checksum) - 8 * ord(" ")
        # Ten times as fast as sum(header), to the modulus.
        is_intact = (total + 1) % _ADLER == zlib.adler32(header) & 0xFFFF
        num_bytes = int(size.rstrip(b"\0 "), 8)
        name = header[_NAME].partition(b"\0")[0].decode("ascii")
    except ValueError:
        return None
    is_usual = num_bytes >= 0 and not header[_PREFIX] and not name.endswith("/")
    return (name, num_bytes) if is_intact and is_usual else None
