"""Which files in folders are images."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from data_prep.shard_set.fields import name_some

_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".avif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".tga"),
)
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*")

BEGIN_BYTES = 12
"""Of a file, to see whether it is an image."""


class Folder(NamedTuple):
    """What is in a folder, without what is hidden."""

    files: list[Path]
    folders: list[Path]
    others: list[Path]
    """Broken links, devices and the like."""


def scan(folder: Path) -> Folder:
    """Look into a folder; links count as what they lead to. Raises `OSError`."""
    found = Folder([], [], [])
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                kind = 0 if entry.is_file() else 1 if entry.is_dir() else 2
                found[kind].append(Path(entry.path))
    return found


def walk(folder: Path) -> Iterator[Folder]:
    """This folder and all below it, level by level. Each comes once: links may lead in a circle."""
    level, seen = [folder], set[tuple[int, int]]()
    while level:
        below: list[Path] = []
        for path in sorted(level):
            status = path.stat()
            if (place := (status.st_dev, status.st_ino)) not in seen:
                seen.add(place)
                found = scan(path)
                yield found
                below += found.folders
        level = below


def is_image(name: str, read_begin: Callable[[], bytes]) -> bool:
    """Whether a file is an image by the end of its name, or else by its first `BEGIN_BYTES`."""
    if name.lower().endswith(_SUFFIXES):
        return True
    begin = read_begin()
    return begin.startswith(_BEGINNINGS) or (begin[:4], begin[8:]) == (b"RIFF", b"WEBP")


def is_image_file(path: Path) -> bool:
    """`is_image` of a file; raises `OSError`."""

    def read_begin() -> bytes:
        with path.open("rb") as file:
            return file.read(BEGIN_BYTES)

    return is_image(path.name, read_begin)


def left_out(folder: Path, paths: Collection[str]) -> str:
    """A sentence about the files in `folder` that are no images."""
    return (
        f"left out below {folder}, as neither name nor first bytes are those of an image: "
        f"{name_some(paths)}"
    )
