"""Who holds up the others, by where the time of all ranks went in the last log intervals.

Ranks step together: while one is slow, the others wait for it, in the averaging of gradients. A
rank's own time is that of its steps without that waiting. What can be told of a delay:

    stays with a rank    its own time is longer than the others', and it waits least: it is named,
                         with the phase that takes it longer
    wanders              every rank waits, each when it has not waited for data itself: the loader
    in averaging itself  every rank waits, at all times: nobody knows for whom

Two ranks that share a replica wait for each other in the forward and backward passes, too: replicas
are compared, and a rank of one is named by what it does outside of these passes.

Looked at are the last log intervals: two or more, with 40 steps and 10 seconds together, where
short ones in a row count as one. A delay counts if it is a fifth of their steps, and a tenth of the
steps of each: less happens to ranks that are well, where several programs share few cores. Once
found it lasts down to a tenth of all.
"""

from __future__ import annotations

import functools
import math
import operator
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import NamedTuple, assert_never

from pipeline.run.events import SlowPart
from pipeline.run.phase import PHASE_LABELS, Label
from pipeline.train.rank_sums import RankTimes

LEAST_SHARE = 0.2  # of a step; half of it in one interval, and of a delay that has been found
LEAST_INTERVALS, LEAST_STEPS, LEAST_SECONDS = 2, 40, 10.0
_PARTS = 4  # an interval counts by itself if it has this part of these steps and seconds
_USUAL_INTERVALS = 100
_MOSTLY_WAITING = 0.5
"""If all ranks wait for this share of a step, that is a delay, even if it is usual."""
_CERTAIN = 5.0
"""Standard errors by which a rank has to be slower."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Delay:
    """What makes steps longer."""

    slow: SlowPart
    lag_seconds: float
    """How much longer a step takes because of it."""
    rank: int | None = None
    phase: Label | None = None
    replica: int | None = None
    """The slow one, if nobody knows which of its ranks it is."""


class _Usual(NamedTuple):
    """How long all ranks wait for others while none is slow."""

    wait: float = math.inf
    """Seconds of a step."""
    ratio: float = math.inf
    """To their own time."""


class _Comparison:
    """Of the replicas of a job, or of the ranks of the only one; a unit is one or the other."""

    def __init__(self, ranks: Sequence[RankTimes], ranks_per_replica: int) -> None:
        self.ranks = ranks
        self.is_split = ranks_per_replica > 1
        self.unit_size = ranks_per_replica if ranks[0].waits_in == "sync_wait" else 1
        self.step_seconds = fmean(rank.seconds / max(1.0, rank.num_steps) for rank in ranks)
        self.own = self._of_units([rank.own for rank in ranks])
        self.waits = self._of_units([rank.wait for rank in ranks])
        self.slowest = max(range(len(self.own)), key=self.own.__getitem__)

    def _of_units(self, values: Sequence[float]) -> list[float]:
        size = self.unit_size
        return [fmean(values[at : at + size]) for at in range(0, len(values), size)]

    def lag_of(self, unit: int) -> float:
        return self.own[unit] - median(_others(self.own, unit))

    @property
    def wandering(self) -> float:
        """How much longer steps are because ranks wait for data, and for each other, in turn.

        If in each step one of N ranks waits D for data, and the others wait for it, then waiting D
        for data has the chance 1/N and excludes waiting for ranks. The covariances of all ranks sum
        to -D² (1 - 1/N). They are 0 if the rank is always the same, or if all wait at once.
        """
        sum_of_all = -sum(rank.covariance for rank in self.ranks)
        return math.sqrt(max(0.0, sum_of_all) / (1 - 1 / len(self.own)))

    @property
    def usual(self) -> _Usual:
        """What it would be if there were no delay."""
        wait = min(rank.mean("sync_wait") for rank in self.ranks)
        return _Usual(wait, wait / fmean(rank.own for rank in self.ranks))

    def waits_more_than(self, usual: _Usual) -> float:
        """How much longer every rank waits than usual, or at all if it mostly does; or 0."""
        wait = min(self.waits)
        if self.unit_size == 1 and self.is_split:
            return 0.0  # it computes at the same time
        if wait >= _MOSTLY_WAITING * self.step_seconds:
            return wait
        return max(0.0, wait - max(usual.wait, usual.ratio * fmean(self.own)))

    @property
    def stays(self) -> bool:
        """Whether the delay is with the slowest unit all the time, and not there by chance.

        It waits next to nothing; or, where averaging takes long, it waits least, and is slower by
        more than five standard errors. These add up as they do where ranks are slow in turn.
        """
        at, lag = self.slowest, self.lag_of(self.slowest)
        deviations = self._of_units([rank.deviation for rank in self.ranks])
        spread = deviations[at] + median(_others(deviations, at))
        is_certain = lag >= _CERTAIN * spread / math.sqrt(max(1.0, self.ranks[0].num_steps))
        waits = self.waits[at]
        return waits <= lag / 8 or (is_certain and waits <= min(self.waits) + lag / 8)

    def culprit(self) -> Delay:
        """The rank of the slowest unit and its phase, if both are clear."""
        lag, rest = self.lag_of(self.slowest), _others(self.own, self.slowest)
        if max(rest) - median(rest) > lag / 2:  # another one is slow, too
            return Delay(slow="unattributed", lag_seconds=lag)
        members = range(self.slowest * self.unit_size, (self.slowest + 1) * self.unit_size)
        others = [rank for at, rank in enumerate(self.ranks) if at not in members]
        shared: set[Label] = {"forward_backward"} if self.is_split else set()
        found: list[tuple[float, int, Label]] = []
        for phase in PHASE_LABELS.keys() - {"sync_wait", *shared}:
            usual = median(rank.mean(phase) for rank in others)
            more = sorted((self.ranks[at].mean(phase) - usual, at) for at in members)
            # What the ranks of a replica do together takes longer on both.
            if len(more) == 1 or more[-2][0] <= more[-1][0] / 2:
                found.append((*more[-1], phase))
        excess, rank, phase = max(found, default=(0.0, 0, "other"))
        if excess >= lag / 2:
            return Delay(slow="rank", rank=rank, phase=phase, lag_seconds=lag)
        replica = self.slowest if self.unit_size > 1 else None
        return Delay(slow="unattributed", replica=replica, lag_seconds=lag)

    def find(self, usual: _Usual, least_share: float) -> Delay | None:
        """A delay of at least this share of a step."""
        least, lag = least_share * self.step_seconds, self.lag_of(self.slowest)
        if self.wandering >= max(least, lag):
            return Delay(slow="loader", phase="data_wait", lag_seconds=self.wandering)
        if lag >= least and self.stays:
            return self.culprit()
        more = self.waits_more_than(usual)
        if more >= least:
            return Delay(slow="unattributed", phase="sync_wait", lag_seconds=more)
        return None

    def has(self, delay: Delay, usual: _Usual, least_share: float) -> bool:
        """Whether the delay, which was found in several intervals, is in this one of them."""
        least = least_share * self.step_seconds
        if delay.rank is not None:
            return self.lag_of(delay.rank // self.unit_size) >= least
        if delay.slow == "loader":
            data_wait = [rank.mean("data_wait") for rank in self.ranks]
            return max(self.wandering, max(data_wait) - min(data_wait)) >= least
        return max(self.lag_of(self.slowest), self.waits_more_than(usual)) >= least


def _others(values: Sequence[float], index: int) -> list[float]:
    return [*values[:index], *values[index + 1 :]]


class Stragglers:
    """Looks at one log interval after another; all ranks that do come to the same results."""

    def __init__(self, ranks_per_replica: int) -> None:
        self._ranks_per_replica = ranks_per_replica
        self._usual: deque[_Usual] = deque(maxlen=_USUAL_INTERVALS)
        """Of the intervals before the last ones that had no delay."""
        self._short: Sequence[RankTimes] | None = None
        """Intervals that are too short as yet, together."""
        self._last: list[Sequence[RankTimes]] = []
        """Intervals: as many as are looked at."""
        self._found: Delay | None = None

    def look(self, ranks: Sequence[RankTimes]) -> Delay | None:
        """The delay that lasts after one more interval of all ranks, in order, if there is one."""
        if len(ranks) < 2:
            return None
        ranks = ranks if self._short is None else _together([self._short, ranks])
        self._short = None if _are_enough([ranks], 1, _PARTS) else ranks
        if self._short is not None:
            return self._found
        self._last.append(ranks)
        while _are_enough(self._last[1:], LEAST_INTERVALS):
            before = self._last.pop(0)
            if self._found is None:
                self._usual.append(_Comparison(before, self._ranks_per_replica).usual)
        self._found = self._find() if _are_enough(self._last, LEAST_INTERVALS) else None
        return self._found

    def _find(self) -> Delay | None:
        usual = _Usual(*map(median, zip(*self._usual, strict=True))) if self._usual else _Usual()
        share = LEAST_SHARE if self._found is None else LEAST_SHARE / 2
        together = _Comparison(_together(self._last), self._ranks_per_replica)
        delay = together.find(usual, share)
        if delay is None:
            return None
        each = (_Comparison(ranks, self._ranks_per_replica) for ranks in self._last)
        return delay if all(one.has(delay, usual, share / 2) for one in each) else None


def _together(intervals: Sequence[Sequence[RankTimes]]) -> list[RankTimes]:
    return [functools.reduce(operator.add, of_rank) for of_rank in zip(*intervals, strict=True)]


def _are_enough(intervals: Sequence[Sequence[RankTimes]], least: int, parts: int = 1) -> bool:
    return (
        len(intervals) >= least
        and sum(ranks[0].num_steps for ranks in intervals) >= LEAST_STEPS / parts
        and sum(ranks[0].seconds for ranks in intervals) >= LEAST_SECONDS / parts
    )


def sentence_of_delay(delay: Delay, host: str | None) -> str:
    """What a user reads of it; `host` is that of its rank."""
    lag = f"{delay.lag_seconds:.3f} s a step"
    match delay.slow:
        case "rank":
            assert delay.phase is not None
            return (
                f"rank {delay.rank} on {host} holds up the others by {lag} "
                f"({PHASE_LABELS[delay.phase]})"
            )
        case "loader":
            return f"ranks wait for data in turn, and for each other, {lag}: the loader is slow"
        case "unattributed":
            who = "averaging is slow, for one rank or for all"
            if delay.phase is None:
                who = "no single rank is to blame"
            if delay.replica is not None:
                who = f"one of replica {delay.replica} is slow, but it is not known which"
            return f"ranks wait for each other, {lag}: {who}"
        case unknown:
            assert_never(unknown)
