"""What each rank adds up in a log interval, and how all ranks come to have the sums of all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch

from pipeline.ranks.world import World
from pipeline.run.phase import PHASE_LABELS, Label


def waiting_label(num_ranks: int, ranks_per_replica: int) -> Label:
    """The phase in which a rank waits for those it is compared with.

    Ranks that share the only replica of a job average nothing.
    """
    return "sync_wait" if num_ranks > ranks_per_replica else "forward_backward"


@dataclass(kw_only=True, slots=True)
class RankTimes:
    """Sums over the steps of a rank; seconds, and squares of seconds."""

    waits_in: Label
    """The phase in which it waits for those that it is compared with."""
    num_steps: float = 0.0
    own_squares: float = 0.0
    """Squares of each step's own time."""
    products: float = 0.0
    """Of each step's waiting for data and its waiting for ranks."""
    phase_seconds: dict[Label, float] = field(
        default_factory=lambda: dict.fromkeys(PHASE_LABELS, 0.0)
    )

    def add(self, phase_seconds: Mapping[Label, float]) -> None:
        """One more step."""
        waiting = phase_seconds[self.waits_in]
        for label, seconds in phase_seconds.items():
            self.phase_seconds[label] += seconds
        self.own_squares += (sum(phase_seconds.values()) - waiting) ** 2
        self.products += phase_seconds["data_wait"] * waiting
        self.num_steps += 1

    def __add__(self, other: Self) -> Self:
        ours, theirs = self.phase_seconds, other.phase_seconds
        return type(self)(
            waits_in=self.waits_in,
            num_steps=self.num_steps + other.num_steps,
            own_squares=self.own_squares + other.own_squares,
            products=self.products + other.products,
            phase_seconds={label: ours[label] + theirs[label] for label in ours},
        )

    @property
    def seconds(self) -> float:
        return sum(self.phase_seconds.values())

    def mean(self, label: Label) -> float:
        """Seconds of a step in this phase."""
        return self.phase_seconds[label] / max(1.0, self.num_steps)

    @property
    def wait(self) -> float:
        """Seconds of a step."""
        return self.mean(self.waits_in)

    @property
    def own(self) -> float:
        return self.seconds / max(1.0, self.num_steps) - self.wait

    @property
    def deviation(self) -> float:
        """Standard deviation of the own time."""
        return math.sqrt(max(0.0, self.own_squares / max(1.0, self.num_steps) - self.own**2))

    @property
    def covariance(self) -> float:
        """Of waiting for data with waiting for ranks."""
        return self.products / max(1.0, self.num_steps) - self.mean("data_wait") * self.wait


@dataclass(kw_only=True, slots=True)
class RankSums:
    """The sums of one rank."""

    times: RankTimes
    num_samples: float = 0.0
    loss: float = 0.0
    """Until it is gathered, only the device knows this and the next two."""
    correct: float = 0.0
    fingerprint: int = 0
    """Of its weights, see `pipeline.optim.fingerprint`; 64 bits, signed."""

    def gather(self, world: World, on_device: torch.Tensor) -> list[Self]:
        """Those of every rank in order, on every rank, which call it together.

        `on_device` has what only the device knows: float64, the loss, the right answers and the two
        halves of the fingerprint. Each rank adds zeros to the others' numbers, so the sum over the
        ranks is all of them, with all their bits.
        """
        times = self.times
        on_host = [self.num_samples, times.num_steps, times.own_squares, times.products]
        on_host += times.phase_seconds.values()
        rest = torch.tensor(on_host, dtype=torch.float64, device=world.device)
        mine = torch.cat([on_device, rest])
        table = torch.zeros(world.size, len(mine), dtype=torch.float64, device=world.device)
        table[world.rank] = mine
        return [self._read(row) for row in world.all_reduce(table).tolist()]

    def _read(self, row: Sequence[float]) -> Self:
        loss, correct, upper, lower, num_samples, num_steps, squares, products, *seconds = row
        times = RankTimes(
            waits_in=self.times.waits_in,
            num_steps=num_steps,
            own_squares=squares,
            products=products,
            phase_seconds=dict(zip(PHASE_LABELS, seconds, strict=True)),
        )
        return type(self)(
            times=times,
            num_samples=num_samples,
            loss=loss,
            correct=correct,
            fingerprint=(int(upper) << 32) + int(lower),
        )
