"""The ranks of the newest attempt side by side, from the files that they publish."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.metrics.declared import GPU_ENERGY, TRAIN_SAMPLES
from pipeline.metrics.outcomes import RunStatus
from pipeline.metrics.rank_file import RankFile
from pipeline.report.inputs import Missing
from pipeline.run.phase import PHASE_LABELS, Label

_MAX_SHOWN = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Rank:
    """What one rank has counted since its process began."""

    rank: int
    host: str
    num_samples: int
    phase_seconds: Mapping[Label, float]
    energy_joules: float
    """Of its GPU; NaN where nothing measures it."""

    @property
    def seconds(self) -> float:
        return sum(self.phase_seconds.values())

    def share(self, phase: Label) -> float:
        return self.phase_seconds[phase] / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Those that are shown, by rank, and what all of them are."""

    shown: Sequence[Rank]
    """Of many the slowest: those that have waited least for others."""
    num_ranks: int
    longest_seconds: float
    energy_joules: float | None
    """Of all GPUs; None where that of one is not known."""
    damaged: str | None
    """How many files cannot be read; None: all can."""


def compare_ranks(status: RunStatus) -> Ranks | Missing:
    """Of a run whose ranks have published."""
    ranks = sorted(map(_read, status.ranks), key=lambda rank: rank.rank)
    count = status.num_damaged
    damaged = f"{count} damaged file{'s' if count > 1 else ''}" if count else None
    if not ranks:
        why = f": {damaged}" if damaged else ""
        return Missing(f"The run directory has no metrics of ranks that can be read{why}.")
    slowest = sorted(ranks, key=lambda rank: rank.share("sync_wait"))[:_MAX_SHOWN]
    energy = sum(rank.energy_joules for rank in ranks)
    return Ranks(
        shown=[rank for rank in ranks if rank in slowest],
        num_ranks=len(ranks),
        longest_seconds=max(rank.seconds for rank in ranks),
        energy_joules=None if math.isnan(energy) else energy,
        damaged=damaged,
    )


def _read(file: RankFile) -> Rank:
    """What a file does not have, one of an older version, counts as 0."""
    seconds, energy = file.phase_seconds, file.value(GPU_ENERGY)
    return Rank(
        rank=file.writer.rank,
        host=file.writer.host,
        num_samples=round(file.value(TRAIN_SAMPLES) or 0),
        phase_seconds={label: seconds.get(label, 0.0) for label in PHASE_LABELS},
        energy_joules=math.nan if energy is None else energy,
    )
