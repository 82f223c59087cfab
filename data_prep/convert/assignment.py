"""Which sample goes into which shard: pure functions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class ShardName:
    """A shard of a split."""

    split: str
    number: int

    @property
    def stem(self) -> str:
        return f"{self.split}-{self.number:06d}"

    @property
    def filename(self) -> str:
        return f"{self.stem}.tar"


@dataclass(frozen=True, slots=True)
class Task:
    """One of several processes, on any hosts, that make one shard set."""

    number: int
    """From 0."""
    num_tasks: int

    def __str__(self) -> str:
        return f"task {self.number} of {self.num_tasks}"

    def pick(self, shards: Sequence[ShardName]) -> Sequence[ShardName]:
        """The shards of this task: every `num_tasks`-th."""
        return shards[self.number :: self.num_tasks]


def assign(keys: Iterable[str], *, seed: int, samples_per_shard: int) -> list[npt.NDArray[np.intp]]:
    """Shuffle the unique `keys` by `seed`; returns the rows of `keys` that go into each shard.

    Every shard but the last has `samples_per_shard` samples. The order is that of a hash of seed
    and key, and depends on nothing else.
    """
    hashes = bytearray()
    for key in keys:
        hashes += hashlib.sha256(f"{seed}/{key}".encode()).digest()
    words = np.frombuffer(hashes, ">u8").reshape(-1, 4)  # which sort as the hashes do
    order = np.lexsort(words.T[::-1])
    return [order[i : i + samples_per_shard] for i in range(0, len(order), samples_per_shard)]
