"""Where the time of each rank goes, from what the ranks publish."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.metrics.rank_file import RankFile
from pipeline.run.phase import PHASE_LABELS, Label

_RECENT_SECONDS = 60.0
_MAX_RANKS = 32

_Key = tuple[int, float]
"""Of a rank's process: its rank, and when it began to publish."""


class RankTimes:
    """Compares what the ranks publish with what they published a minute before."""

    def __init__(self) -> None:
        self._readings: list[tuple[float, Mapping[_Key, Mapping[str, float]]]] = []

    def add(self, ranks: Sequence[RankFile], now: float) -> None:
        self._readings.append((now, {_key(rank): rank.phase_seconds for rank in ranks}))
        while len(self._readings) > 1 and self._readings[1][0] < now - _RECENT_SECONDS:
            del self._readings[0]

    def rows(self, ranks: Sequence[RankFile], host: str, now: float) -> list[dict[str, Any]]:
        """Each rank with the shares of its phases: lately, or in all if it does not go on.

        If there are many, those that wait least for others: the others wait for them.
        """
        shares = {rank.writer.rank: self._shares(rank) for rank in ranks}
        shown = sorted(ranks, key=lambda rank: shares[rank.writer.rank]["sync_wait"])[:_MAX_RANKS]
        return [
            {
                "rank": rank.writer.rank,
                "host": rank.writer.host,
                "state": rank.outcome(host, now),
                "shares": shares[rank.writer.rank],
            }
            for rank in sorted(shown, key=lambda rank: rank.writer.rank)
        ]

    def _shares(self, rank: RankFile) -> dict[Label, float]:
        after, before = rank.phase_seconds, self._readings[0][1].get(_key(rank), {})
        lately = {label: after.get(label, 0.0) - before.get(label, 0.0) for label in PHASE_LABELS}
        seconds = lately if sum(lately.values()) > 0 else after
        total = sum(seconds.values()) or 1.0
        return {label: seconds.get(label, 0.0) / total for label in PHASE_LABELS}


def _key(rank: RankFile) -> _Key:
    return rank.writer.rank, rank.writer.since
