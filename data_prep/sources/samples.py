"""The samples of a split before they are read: a million in little memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a split, before it is read."""

    key: str
    label: int
    locator: str
    """Says to the reader which image it is, and to people where to look."""


class SampleTable:
    """Samples, each kept as one line of bytes and made an object when asked for."""

    def __init__(self, samples: Iterable[Sample] = ()) -> None:
        # Names of files need not be UTF-8.
        self._lines = [
            f"{sample.key} {sample.label} {sample.locator}".encode("utf-8", "surrogatepass")
            for sample in samples
        ]

    def extend(self, other: SampleTable) -> None:
        """Append all samples of `other`."""
        self._lines += other._lines

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, row: int) -> Sample:
        key, label, locator = self._lines[row].decode("utf-8", "surrogatepass").split(" ", 2)
        return Sample(key, int(label), locator)

    def __iter__(self) -> Iterator[Sample]:
        return map(self.__getitem__, range(len(self)))

    def keys(self) -> Iterator[str]:
        """Keys of all samples, in their order."""
        return (line.partition(b" ")[0].decode() for line in self._lines)

    def count_labels(self, num_classes: int) -> list[int]:
        """The number of samples of each class."""
        counts = Counter(int(line.split(b" ", 2)[1]) for line in self._lines)
        return [counts[label] for label in range(num_classes)]

    def rows_by_key(self) -> npt.NDArray[np.intp]:
        """Rows in the order of their keys, which are ASCII."""
        return np.argsort(self._key_array(), kind="stable")

    def repeated_keys(self) -> list[str]:
        """Keys that more than one sample has."""
        keys, counts = np.unique(self._key_array(), return_counts=True)
        return [key.decode() for key in keys[counts > 1]]

    def _key_array(self) -> npt.NDArray[np.bytes_]:
        width = max(map(len, self.keys()), default=1)
        return np.fromiter((key.encode() for key in self.keys()), f"S{width}", len(self))
