"""What reading costs, and what a reader says about damage."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """A damaged image of a split; another one is read instead."""

    sample: int
    """Its number in the split."""
    shard: str
    """The file it is in."""
    what: str
    """What is wrong with it, and where it is."""


@dataclass(slots=True)
class ReadCost:
    """What reading cost so far; the seconds are summed over the reader's threads."""

    num_samples: int = 0
    num_bytes: int = 0
    read_seconds: float = 0.0
    decode_seconds: float = 0.0
    num_replaced: int = 0
    """Samples that another one was read for."""
    damages: list[Damage] = field(default_factory=list)
    """Damaged images that were found since the last time."""

    def add(self, other: ReadCost) -> None:
        self.num_samples += other.num_samples
        self.num_bytes += other.num_bytes
        self.read_seconds += other.read_seconds
        self.decode_seconds += other.decode_seconds
        self.num_replaced += other.num_replaced
        self.damages += other.damages


class CorruptImage(Exception):
    """The bytes of an image are not those that were written."""
