"""All ranks get all numbers of all ranks, with all their bits."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.optim.fingerprint import halves_of
from pipeline.ranks.world import World
from pipeline.run.phase import PHASE_LABELS, Label
from pipeline.train.rank_sums import RankSums, RankTimes, waiting_label
from tests.pipeline.rank_jobs import call_on_ranks

SIZE = 3
FINGERPRINTS = (-(2**63), 2**63 - 1, -1)


def seconds_of(rank: int, step: int) -> dict[Label, float]:
    return {label: (1 + number + step) / (3 + rank) for number, label in enumerate(PHASE_LABELS)}


def sums_of(rank: int) -> RankSums:
    sums = RankSums(
        times=RankTimes(waits_in="sync_wait"),
        num_samples=7.0 + rank,
        loss=math.nan if rank == 1 else 1 / (3 + rank),
        correct=float(rank),
        fingerprint=FINGERPRINTS[rank],
    )
    for step in range(4):
        sums.times.add(seconds_of(rank, step))
    return sums


def gathered(world: World) -> list[RankSums]:
    mine = sums_of(world.rank)
    sums = torch.tensor([mine.loss, mine.correct], dtype=torch.float64)
    on_device = torch.cat([sums, halves_of(torch.tensor(mine.fingerprint))])
    return RankSums(times=mine.times, num_samples=mine.num_samples).gather(world, on_device)


@pytest.mark.slow
def test_no_number_of_a_rank_is_mixed_with_those_of_others() -> None:
    """Not even by one that is NaN."""
    for found in call_on_ranks(SIZE, gathered):
        assert [repr(sums) for sums in found] == [repr(sums_of(rank)) for rank in range(SIZE)]


def test_means_and_spreads_are_those_of_the_steps() -> None:
    times = sums_of(0).times + sums_of(0).times
    steps = torch.tensor([list(seconds_of(0, step).values()) for step in range(4)] * 2).double()
    at = dict(zip(PHASE_LABELS, steps.T, strict=True))
    own = steps.sum(1) - at["sync_wait"]
    assert times.num_steps == len(steps)
    assert times.seconds == pytest.approx(float(steps.sum()))
    assert times.wait == times.mean("sync_wait") == pytest.approx(float(at["sync_wait"].mean()))
    assert times.own == pytest.approx(float(own.mean()))
    assert times.deviation == pytest.approx(float(own.std(correction=0)))
    pair = torch.stack([at["data_wait"], at["sync_wait"]])
    assert times.covariance == pytest.approx(float(pair.cov(correction=0)[0, 1]))


def test_ranks_of_the_only_replica_wait_in_their_passes() -> None:
    assert waiting_label(2, 1) == waiting_label(4, 2) == "sync_wait"
    assert waiting_label(2, 2) == "forward_backward"
