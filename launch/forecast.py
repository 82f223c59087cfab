"""How long a run takes whose job fails by chance, and how often it should save: pure functions.

Failures come at a constant rate, also while ranks start and save; each costs what was done since
the newest save that counts, and a restart. For saves that steps wait for this is Daly's complete
model ("A higher order estimate of the optimum checkpoint interval for restart dumps", FGCS 22,
2006, equation 13); here a save may also count later than steps wait for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What stops the steps; all in seconds but the rate."""

    rate: float
    """Failures of the whole job a second."""
    wait: float
    """Steps wait for a save."""
    counts: float
    """From the beginning of a save until it counts: not less than `wait`."""
    start: float
    """Until the first step."""
    restart: float
    """From a failure to the next step."""
    kept: float = 0.0
    """The share of failures that ranks survive in memory: these cost a warm restart alone."""
    warm: float = 0.0
    """From such a failure to the next step."""

    @property
    def stretch(self) -> float:
        """How much longer everything takes by warm restarts, each of which may begin anew."""
        return math.exp(self.rate * self.kept * self.warm)

    @property
    def lossy_rate(self) -> float:
        """Failures that cost work, in a second without warm restarts."""
        return self.rate * (1 - self.kept) * self.stretch


def expected_seconds(work: float, interval: float, costs: Costs) -> float:
    """Wall time of `work` seconds between saves, one after each `interval` and one at the end.

    Infinite if a run gets nowhere. At most one save is on its way: the next one waits for it.
    """
    num_full = max(0, math.ceil(work / interval - 1e-9) - 1)
    last, late = work - num_full * interval, costs.counts - costs.wait
    parts = [(interval, num_full), (last, 1)] if num_full else [(last, 1)]
    first = parts[0][0] + costs.counts
    parts[0] = parts[0][0], parts[0][1] - 1
    rate = costs.lossy_rate
    if rate == 0:
        later = (n * (max(part - late, 0) + costs.counts) for part, n in parts)
        return costs.stretch * (costs.start + first + sum(later))
    # Behind a restart no save is on its way. Behind a save the next part has begun while that one
    # could still be lost. Either may fail until its own save counts, and then begins anew.
    try:
        lost = -math.expm1(-rate * costs.start) + math.expm1(rate * first)
        for part, number in parts:
            rest = max(part - late, 0) + costs.counts
            begun = math.exp(rate * min(part, late))
            lost += number * begun * math.expm1(rate * rest)
        return costs.stretch * math.exp(rate * costs.restart) / rate * lost
    except OverflowError:
        return math.inf


def best_interval(work: float, costs: Costs) -> float:
    """The work between two saves with which a run takes least, between fewest and most saves.

    Where the derivative of the model is zero: x + ln(1 - x) = -rate * wait, x = rate * interval.
    """
    rate = costs.lossy_rate
    least = max(costs.counts - costs.wait, 1e-9 * work)  # with less, saves wait for each other
    low, high = 0.0, math.nextafter(1.0, 0.0)
    for _ in range(100):
        middle = (low + high) / 2
        is_below = math.log1p(-middle) + middle > -rate * costs.wait
        low, high = (middle, high) if is_below else (low, middle)
    return min(work, max(least, low / rate if rate else work))


def young_interval(costs: Costs) -> float:
    """Young's first order approximation (CACM 17, 1974)."""
    return math.sqrt(2 * costs.wait / costs.lossy_rate) if costs.lossy_rate else math.inf


def daly_interval(costs: Costs) -> float:
    """Daly's higher order estimate, equation 37 of his paper."""
    if costs.lossy_rate == 0:
        return math.inf
    half = costs.lossy_rate * costs.wait / 2
    if half >= 1:
        return 1 / costs.lossy_rate
    return young_interval(costs) * (1 + math.sqrt(half) / 3 + half / 9) - costs.wait
