"""The samples of a split, before they are read: a million of them in little memory."""

from __future__ import annotations

import itertools
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

_CHUNK_LENGTH = 128
"""Samples in one chunk: only so many are objects while a table is made, and none is copied."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a split, before it is read."""

    key: str
    label: int
    locator: str
    """Tells the reader which image it is, and people where to look."""


class _Strings:
    """Strings one behind the other: an object of its own for each would take 60 bytes more."""

    __slots__ = ("_content", "_ends")

    def __init__(self, texts: Iterable[str]) -> None:
        # Names of files need not be UTF-8.
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        self._content = b"".join(encoded)
        self._ends = array("I", itertools.accumulate(map(len, encoded)))

    def __getitem__(self, row: int) -> str:
        start = self._ends[row - 1] if row else 0
        return self._content[start : self._ends[row]].decode("utf-8", "surrogatepass")


class _Chunk:
    """Some samples as columns."""

    __slots__ = ("keys", "labels", "locators")

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.keys = _Strings(sample.key for sample in samples)
        self.labels = array("I", (sample.label for sample in samples))
        self.locators = _Strings(sample.locator for sample in samples)

    def __getitem__(self, row: int) -> Sample:
        return Sample(self.keys[row], self.labels[row], self.locators[row])


class SampleTable(Sequence[Sample]):
    """Samples that are objects only when asked for."""

    def __init__(self, samples: Iterable[Sample] = ()) -> None:
        self._chunks: list[_Chunk] = []
        self._starts = [0]
        """Rows at which the chunks start, and the number of all."""
        rest = iter(samples)
        while some := list(itertools.islice(rest, _CHUNK_LENGTH)):
            self._append(_Chunk(some))

    def extend(self, other: SampleTable) -> None:
        """Append all samples of `other`."""
        for chunk in other._chunks:
            self._append(chunk)

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, row: int) -> Sample: ...
    @overload
    def __getitem__(self, row: slice) -> list[Sample]: ...
    def __getitem__(self, row: int | slice) -> Sample | list[Sample]:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of a table of {len(self)} samples")
        row %= len(self)
        number = bisect_right(self._starts, row) - 1
        return self._chunks[number][row - self._starts[number]]

    def keys(self) -> Iterator[str]:
        """Keys of all samples, in their order."""
        for chunk in self._chunks:
            for row in range(len(chunk.labels)):
                yield chunk.keys[row]

    def count_labels(self, num_classes: int) -> list[int]:
        """The number of samples of each class."""
        counts = Counter(itertools.chain.from_iterable(chunk.labels for chunk in self._chunks))
        return [counts[label] for label in range(num_classes)]

    def rows_by_key(self) -> npt.NDArray[np.intp]:
        """Rows in the order of their keys, which are ASCII."""
        return np.argsort(self._key_array(), kind="stable")

    def repeated_keys(self) -> list[str]:
        """Keys that more than one sample has."""
        keys = np.sort(self._key_array())
        return [key.decode() for key in np.unique(keys[1:][keys[1:] == keys[:-1]])]

    def _append(self, chunk: _Chunk) -> None:
        self._chunks.append(chunk)
        self._starts.append(len(self) + len(chunk.labels))

    def _key_array(self) -> npt.NDArray[np.bytes_]:
        width = max(map(len, self.keys()), default=1)
        return np.fromiter((key.encode() for key in self.keys()), f"S{width}", len(self))
