"""Where raw images come from: what every source is.

A source is a function that returns a `Source`: all samples by split, and a reader of one sample.
To add one, write such a function and give it its command in `__main__`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from data_prep.shard_set.manifest import Encoding
from data_prep.shard_set.pixels import Pixels
from data_prep.sources.samples import Sample, SampleTable

RawImage = bytes | Pixels
"""The content of an image file of any format, or pixels."""

_MAX_NAMED = 5
"""How many culprits an error names."""


class SourceError(ValueError):
    """The input is missing, incomplete, or not what the source expects."""


class Reader(Protocol):
    """Reads samples in a worker process: it must be picklable, and small or quick to pickle."""

    def read(self, sample: Sample) -> RawImage:
        """The image; raises `OSError` if it cannot be read."""

    def stamp(self, sample: Sample) -> int:
        """64 bits by which it is noticed that the image was replaced by another.

        Raises `OSError` if the file is not there.
        """


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
    default_size: int | None = None
    """Height and width for an encoding that needs one size, where the images have many."""
    is_replaceable: bool = True
    """Whether images are read from what may be another thing the next time."""

    def pick(self, split: str, rows: npt.NDArray[np.intp]) -> list[Sample]:
        """The samples in these rows of a split."""
        samples = self.splits[split]
        return [samples[row] for row in rows]


def file_stamp(path: Path) -> int:
    """64 bits of a file's size and the time it was written."""
    found = path.stat()
    text = f"{found.st_size} {found.st_mtime_ns}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def list_files(folder: Path) -> list[str]:
    """Names of a class folder's files, sorted, without the hidden ones.

    Raises `SourceError` if there are none, or other things than files.
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
            f"there are folders, broken links or other things that are no files among the images "
            f"({name_some(others)}): move images up into the class folder, and remove the rest"
        )
    return sorted(entry.name for entry in visible)


def name_some(names: Iterable[str], num_names: int | None = None) -> str:
    """The first of the names, and how many more there are: of `num_names`, if not all are given."""
    names = sorted(names)
    num_more = (num_names or len(names)) - _MAX_NAMED
    more = f" and {num_more} more" if num_more > 0 else ""
    return ", ".join(names[:_MAX_NAMED]) + more
