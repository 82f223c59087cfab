"""The samples of a split, before they are read: a million of them in little memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a split, before it is read."""

    key: str
    label: int
    locator: str
    """Tells the reader which image it is, and people where to look."""


@dataclass(frozen=True, slots=True)
class _Strings:
    """Strings one behind the other: an object of its own for each would take 60 bytes more."""

    content: bytes
    ends: npt.NDArray[np.int64]

    @classmethod
    def join(cls, parts: Sequence[_Strings]) -> Self:
        starts = np.cumsum([0, *(len(part.content) for part in parts)])
        ends = [part.ends + start for part, start in zip(parts, starts[:-1], strict=True)]
        content = b"".join(part.content for part in parts)
        return cls(content, np.concatenate([np.empty(0, np.int64), *ends]))

    def __getitem__(self, row: int) -> str:
        start = int(self.ends[row - 1]) if row else 0
        return _decode(self.content[start : int(self.ends[row])])


class SampleTable(Sequence[Sample]):
    """Samples as columns; it makes the objects when asked for them."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        keys, locators = bytearray(), bytearray()
        row = np.dtype((np.int64, 3))
        rows: npt.NDArray[Any] = np.fromiter(_append(samples, keys, locators), row)
        self._keys = _Strings(bytes(keys), rows[:, 0].copy())
        self._locators = _Strings(bytes(locators), rows[:, 1].copy())
        self.labels = rows[:, 2].astype(np.uint32)

    @classmethod
    def join(cls, tables: Sequence[SampleTable]) -> Self:
        """All samples of `tables`, one table behind the other."""
        joined = cls(())
        joined._keys = _Strings.join([table._keys for table in tables])
        joined._locators = _Strings.join([table._locators for table in tables])
        joined.labels = np.concatenate([joined.labels, *(table.labels for table in tables)])
        return joined

    def __len__(self) -> int:
        return len(self.labels)

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
        return Sample(self._keys[row], int(self.labels[row]), self._locators[row])

    def keys(self) -> Iterator[str]:
        """Keys of all samples, in their order."""
        return (self._keys[row] for row in range(len(self)))

    def rows_by_key(self) -> npt.NDArray[np.intp]:
        """Rows in the order of their keys, which are ASCII."""
        return np.argsort(self._key_array(), kind="stable")

    def repeated_keys(self) -> list[str]:
        """Keys that more than one sample has."""
        keys = np.sort(self._key_array())
        return [key.decode() for key in np.unique(keys[1:][keys[1:] == keys[:-1]])]

    def _key_array(self) -> npt.NDArray[np.bytes_]:
        width = int(np.diff(self._keys.ends, prepend=0).max(initial=1))
        return np.fromiter((key.encode() for key in self.keys()), f"S{width}", len(self))


def _append(
    samples: Iterable[Sample], keys: bytearray, locators: bytearray
) -> Iterator[tuple[int, int, int]]:
    """Append each sample's strings; yields where they end, and the label."""
    for sample in samples:
        keys += _encode(sample.key)
        locators += _encode(sample.locator)
        yield len(keys), len(locators), sample.label


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # names of files need not be UTF-8


def _decode(content: bytes) -> str:
    return content.decode("utf-8", "surrogatepass")
