"""Who goes into which shard, and under which key: pure functions."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]+")
"""What a whole key matches; a dot would end the key and start the member's field name."""

MAX_KEY_LENGTH = 96
"""Leaves room for the suffix in the 100 bytes of a ustar member name."""

_FORBIDDEN = re.compile(r"[^A-Za-z0-9_-]+")
_MAX_STEM_LENGTH = 72
"""Leaves room for the number in a key."""


@dataclass(frozen=True, slots=True)
class ShardName:
    """One of a split's shards, by its number."""

    split: str
    number: int

    @property
    def stem(self) -> str:
        return f"{self.split}-{self.number:06d}"

    @property
    def filename(self) -> str:
        return f"{self.stem}.tar"

    @property
    def record_filename(self) -> str:
        return f"{self.stem}.npz"


@dataclass(frozen=True, slots=True)
class Task:
    """One of several processes, on any hosts, that make one shard set."""

    number: int
    """From 0."""
    num_tasks: int

    def __str__(self) -> str:
        return f"task {self.number} of {self.num_tasks}"

    def pick(self, shards: Sequence[ShardName]) -> Sequence[ShardName]:
        """Its own among all shards: every `num_tasks`-th."""
        return shards[self.number :: self.num_tasks]


def make_keys(names: Sequence[str]) -> list[str]:
    """A unique key for each file name (or relative path), without its suffix.

    Every run of characters that no key may have becomes `_`. Names that then are equal are
    numbered in their order: `a.b.jpg`, `a b.jpg`, `a_b.png` become `a_b-2`, `a_b`, `a_b-3`.
    The same names give the same keys in any order.
    """
    keys = [""] * len(names)
    taken: set[str] = set()
    last_number: dict[str, int] = {}
    for row in sorted(range(len(names)), key=names.__getitem__):
        name = str(PurePosixPath(names[row]).with_suffix(""))
        stem = key = _FORBIDDEN.sub("_", name)[:_MAX_STEM_LENGTH]
        while key in taken:
            last_number[stem] = last_number.get(stem, 1) + 1
            key = f"{stem}-{last_number[stem]}"
        taken.add(key)
        keys[row] = key
    return keys


def assign(keys: Iterable[str], *, seed: int, samples_per_shard: int) -> list[npt.NDArray[np.intp]]:
    """Shuffle the unique `keys` by `seed` and cut them into shards: rows of `keys`, by shard.

    Every shard but the last has `samples_per_shard` samples. The order is by a hash of seed and
    key, so it depends on nothing else: not on the order of `keys`, not on a random generator.
    """
    hashes = bytearray()
    for key in keys:
        hashes += hashlib.sha256(f"{seed}/{key}".encode()).digest()
    words = np.frombuffer(hashes, ">u8").reshape(-1, 4)  # in their order the hashes are in theirs
    order = np.lexsort(words.T[::-1])
    return [order[i : i + samples_per_shard] for i in range(0, len(order), samples_per_shard)]
