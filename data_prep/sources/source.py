"""What every source is, and what sources share.

A source is a function that returns a `Source`: all samples by split, and a reader of one sample.
To add one, write such a function and give it its command in `data_prep.sharding`.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import itertools
import logging
import os
import re
import tarfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
import numpy.typing as npt

from data_prep.shard_set.fields import name_some
from data_prep.shard_set.manifest import Encoding
from data_prep.shard_set.pixels import Pixels
from data_prep.sources.samples import Sample, SampleTable

_log = logging.getLogger(__name__)

RawImage = bytes | Pixels
"""The content of an image file of any format, or pixels."""


class SourceError(ValueError):
    """The input is missing, incomplete, or not what the source expects."""


class Reader(Protocol):
    """Reads samples in a worker process: it must be picklable, and small or quick to pickle."""

    def read(self, sample: Sample) -> RawImage:
        """The image; raises `OSError` if it cannot be read."""

    def stamp(self, sample: Sample) -> int:
        """64 bits that change when the image is replaced; raises `OSError` if it is gone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A raw data set."""

    name: str
    class_names: tuple[str, ...]
    """In label order."""
    splits: Mapping[str, SampleTable]
    """`train` and `val`; neither is empty."""
    reader: Reader
    default_encoding: Encoding
    selection: Mapping[str, str | int | float] = field(default_factory=dict)
    """What was taken of the raw data, if that is a choice; for the manifest."""
    prepare: Callable[[int, Callable[[int, int], None]], None] | None = None
    """What must be done before a first image is read: it gets a number of threads, and a function
    that shows how many of how many files are done."""
    default_size: int | None = None
    """Height and width for an encoding that needs one size, where the images have many."""

    def pick(self, split: str, rows: npt.NDArray[np.intp]) -> list[Sample]:
        """The samples in these rows of a split."""
        samples = self.splits[split]
        return [samples[row] for row in rows]


_PIECE_BYTES, _MOST_PIECES = 1 << 20, 512
"""Of an archive that is unpacked in memory; the official ones have less than half of that."""

_IN_ARCHIVE = re.compile(r"(.+\.tar):(\d+)\+(\d+):[^:]+")
"""Locator of an image in an archive: the archive, offset and length of its content, its name."""


@dataclass(frozen=True, slots=True)
class FileReader:
    """Reads images below `root`: files, and members of archives by their position."""

    root: Path

    def read(self, sample: Sample) -> RawImage:
        match = _IN_ARCHIVE.fullmatch(sample.locator)
        if match is None:
            return (self.root / sample.locator).read_bytes()
        path, offset, num_bytes = self.root / match[1], int(match[2]), int(match[3])
        with path.open("rb", buffering=0) as file:
            content = os.pread(file.fileno(), num_bytes, offset)
        if len(content) != num_bytes:
            raise OSError(errno.EIO, f"it ends in or before {sample.locator}", str(path))
        return content

    def stamp(self, sample: Sample) -> int:
        """Of the file, or of the archive."""
        match = _IN_ARCHIVE.fullmatch(sample.locator)
        return file_stamp(self.root / (sample.locator if match is None else match[1]))


def file_stamp(path: Path) -> int:
    """64 bits of the size and the modification time of a file."""
    found = path.stat()
    text = f"{found.st_size} {found.st_mtime_ns}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def choose(root: Path, split: str, names: Sequence[str]) -> str:
    """The first of `names` that is in the folder `root`: the split is read from there.

    Warns if others are there, too. Raises `SourceError` if none is.
    """
    if not root.is_dir():
        raise SourceError(
            f"--input {root} is not a folder; expected one that holds {' or '.join(names)}"
        )
    found = [name for name in names if (root / name).exists()]
    if not found:
        raise SourceError(f"--input {root} has no {' or '.join(names)}")
    for other in found[1:]:
        _log.warning(
            "%s is left out: the split '%s' is read from %s", root / other, split, found[0]
        )
    return found[0]


def list_files(folder: Path) -> list[str]:
    """Sorted names of the files in a class folder, without hidden ones.

    Raises `SourceError` if there are none, or if there are other things than files.
    """
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
        others = [entry.path for entry in visible if not entry.is_file()]
    if not visible:
        raise SourceError(
            f"the class folder {folder} is empty: add images, or remove the class from both splits"
        )
    if others:
        raise SourceError(
            f"among the images are folders, broken links or other things that are not files "
            f"({name_some(others)}): move images up into the class folder, and remove the rest"
        )
    return sorted(entry.name for entry in visible)


def read_files(path: Path, names: Collection[str]) -> dict[str, bytes]:
    """The content of files by name, from the folder `path` or anywhere in the .tar.gz `path`.

    Raises `SourceError` if the archive is damaged or a file is missing.
    """
    if path.is_dir():
        found = {name: (path / name).read_bytes() for name in names if (path / name).is_file()}
    else:
        try:
            with gzip.open(path) as file:  # to its end, where the checksum is
                pieces = iter(lambda: file.read(_PIECE_BYTES), b"")
                content = b"".join(itertools.islice(pieces, _MOST_PIECES))
                if file.read(1):
                    raise ValueError("it unpacks to more than 512 MiB")
            with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
                found = {
                    PurePosixPath(member.name).name: content[
                        member.offset_data : member.offset_data + member.size
                    ]
                    for member in archive
                    if member.isreg() and PurePosixPath(member.name).name in names
                }
        except Exception as error:  # a damaged archive raises anything
            raise SourceError(f"{path} cannot be unpacked ({error}): download it again") from None
    if missing := sorted(set(names) - set(found)):
        raise SourceError(
            f"{path} has no {', '.join(missing)}: is it another data set, or not whole?"
        )
    return found


def check_same(what: str, names: Iterable[str], others: Iterable[str]) -> None:
    """Raise `SourceError` if one of the two has a name that the other lacks."""
    if different := set(names) ^ set(others):
        raise SourceError(
            f"{what} differ: {name_some(different)} in only one of them; give both the same"
        )
