"""Ranks arranged as replicas × columns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from pipeline.config.model import Layout
from pipeline.ranks.connect import collective_deadline
from pipeline.ranks.mesh import build_mesh, check_layout
from pipeline.ranks.world import World
from tests.pipeline.rank_jobs import call_on_ranks
from tests.pipeline.worlds import SINGLE


def mesh_and_sums(world: World, columns: Layout) -> dict[str, Any]:
    """The place of a rank, and the sums of 2**rank over its groups."""
    mesh = build_mesh(world, columns, timeout_seconds=30)
    found: dict[str, Any] = {
        "replica": mesh.replica,
        "num_replicas": mesh.num_replicas,
        "column": mesh.column,
        "reports": mesh.reports,
    }
    for name in ("same_replica", "same_column"):
        group, value = getattr(mesh, name), torch.tensor(1 << world.rank)
        if group is not None:
            dist.all_reduce(value, group=group)
            found[name] = int(value)
            found[f"{name} deadline"] = group._get_backend(torch.device("cpu")).options._timeout
    return found


def test_four_ranks_are_two_replicas_of_two_columns() -> None:
    found = call_on_ranks(4, mesh_and_sums, "split")
    assert [(one["replica"], one["column"]) for one in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [one["same_replica"] for one in found] == [0b0011, 0b0011, 0b1100, 0b1100]
    assert [one["same_column"] for one in found] == [0b0101, 0b1010, 0b0101, 0b1010]
    assert [one["reports"] for one in found] == [True, False, True, False]
    deadlines = {one[f"same_{name} deadline"].total_seconds() for one in found for name in GROUPS}
    assert deadlines == {collective_deadline(30).total_seconds()}


GROUPS = ("replica", "column")


def test_two_ranks_are_one_replica_that_averages_with_nobody() -> None:
    found = call_on_ranks(2, mesh_and_sums, "split")
    assert [one["num_replicas"] for one in found] == [1, 1]
    assert [one["same_replica"] for one in found] == [0b11, 0b11]
    assert all("same_column" not in one for one in found)


def test_fused_ranks_are_replicas() -> None:
    found = call_on_ranks(3, mesh_and_sums, "fused")
    assert [one["replica"] for one in found] == [0, 1, 2]
    assert [one["same_column"] for one in found] == [0b111] * 3
    assert all(one["column"] is None and one["reports"] for one in found)
    alone = build_mesh(SINGLE, "fused", timeout_seconds=30)
    assert (alone.num_replicas, alone.same_column, alone.same_replica) == (1, None, None)


@pytest.mark.parametrize(("num_ranks", "number"), [(1, "is 1"), (3, "are 3")])
def test_odd_numbers_of_ranks_cannot_be_paired(num_ranks: int, number: str) -> None:
    with pytest.raises(ValueError, match=rf"needs two ranks .* there {number}: give torchrun an"):
        check_layout("split", num_ranks)
    check_layout("split", 2 * num_ranks)
    check_layout("fused", num_ranks)
