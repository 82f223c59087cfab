"""What goes wrong when: a seed's schedule, and its file.

    {"faults": [{"kind": "kill -9", "rank": 2, "seconds": 37.25}, …]}

`seconds` are since the first step. Each slot of time has one fault, between its first and its last
quarter, and each kind comes once before any comes again.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from benchmarks.under_fire.inside import InnerKind
from data_prep.shard_set.fields import wrong
from data_prep.shard_set.typed import check_types

NUM_RANKS = 4

Kind = Literal[
    InnerKind,
    "kill -9",
    "SIGSTOP",
    "SIGTERM",
    "full disk",
    "damaged checkpoint",
    "partition",
    "exporter killed",
]

KINDS: tuple[Kind, ...] = get_args(Kind)

ENDS_A_RANK: tuple[Kind, ...] = (
    *("exception", "segfault", "abort", "kill -9", "SIGTERM", "damaged checkpoint"),
)
"""The damaged checkpoint is noticed as a rank is killed."""

LEAVES_THE_RANKS: tuple[Kind, ...] = ("full disk", "partition", "exporter killed")
"""After every other kind an attempt begins anew."""

NEEDS_NAMESPACES: tuple[Kind, ...] = ("full disk", "partition")
"""The first needs a mount of its own, the second networks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    kind: Kind
    rank: int
    """Of an exporter and of a partition: a rank of the node that is hit."""
    seconds: float
    """Since the first step."""


def draw(
    seed: int, kinds: Collection[Kind], total_seconds: float, slot_seconds: float
) -> list[Fault]:
    """The schedule of a seed. Raises `ValueError` if there is no time for any fault."""
    dice, order = random.Random(seed), sorted(kinds)
    num_faults = int(total_seconds / slot_seconds)
    if num_faults < 1:
        raise wrong(
            "--seconds-between", f"{slot_seconds:g}", f"at most the run's {total_seconds:g} s"
        )
    rounds = (dice.sample(order, len(order)) for _ in itertools.count())
    drawn = itertools.islice(itertools.chain.from_iterable(rounds), num_faults)
    return [
        Fault(
            kind=kind,
            rank=dice.randrange(NUM_RANKS),
            seconds=round(slot_seconds * (slot + dice.uniform(0.25, 0.75)), 3),
        )
        for slot, kind in enumerate(drawn)
    ]


def write(path: Path, faults: Sequence[Fault]) -> None:
    path.write_text(json.dumps({"faults": [asdict(fault) for fault in faults]}, indent=1) + "\n")


def read(path: Path, kinds: Collection[Kind], total_seconds: float) -> list[Fault]:
    """The faults of a file, for a run of that length that can have these kinds.

    Raises `OSError`, and `ValueError` if the file is no schedule or cannot be replayed.
    """
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict) or not isinstance(found.get("faults"), list):
            raise TypeError('expected {"faults": […]}')
        faults = [
            _fault_of(entry, f"fault {place}") for place, entry in enumerate(found["faults"], 1)
        ]
        _check(faults, kinds, total_seconds)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"--schedule {path} cannot be replayed: {error}") from None
    return faults


def _fault_of(entry: object, name: str) -> Fault:
    if not isinstance(entry, dict) or set(entry) != {"kind", "rank", "seconds"}:
        raise ValueError(f"{name} is {entry!r:.60}, expected an object of kind, rank and seconds")
    fault = Fault(**entry)
    check_types(fault, Fault, name)
    return fault


def _check(faults: Sequence[Fault], kinds: Collection[Kind], total_seconds: float) -> None:
    if not faults:
        raise ValueError("it has no fault; --write-schedule makes one that has")
    for before, (place, fault) in zip((None, *faults), enumerate(faults, 1), strict=False):
        if fault.kind not in kinds:
            raise ValueError(f"fault {place} is '{fault.kind}', which cannot be caused here")
        if not 0 <= fault.rank < NUM_RANKS:
            raise ValueError(
                f"fault {place} is of rank {fault.rank}, expected 0 to {NUM_RANKS - 1}"
            )
        if not (before.seconds if before else 0) <= fault.seconds < total_seconds:
            raise ValueError(
                f"fault {place} comes at {fault.seconds:g} s, expected a time after the one before "
                f"it and before the run's end at {total_seconds:g} s"
            )
