"""The mesh of ranks: replicas of the network × the columns each of them is divided into.

    fused    replica 0   replica 1          split    replica 0       replica 1
             rank 0      rank 1                      rank 0, rank 1  rank 2, rank 3
             columns 0,1 columns 0,1                 column 0, 1     column 0, 1

Ranks of one replica work on the same samples and exchange activations (`pipeline.model.columns`);
ranks of one column hold the same weights and average gradients. Neighbouring ranks, on one host
and its fast links, are one replica.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from pipeline.config.model import Layout, ranks_per_replica
from pipeline.model.columns import NUM_COLUMNS, Columns
from pipeline.ranks.connect import collective_deadline
from pipeline.ranks.failure import waiting_for_ranks
from pipeline.ranks.world import World


@dataclass(frozen=True, kw_only=True, slots=True)
class Mesh:
    """This rank's place on the mesh. A group is None where this rank would be alone in it."""

    replica: int
    num_replicas: int
    column: int | None
    """The column this rank holds; None: both."""
    same_replica: dist.ProcessGroup | None
    same_column: dist.ProcessGroup | None

    @property
    def ranks_per_replica(self) -> int:
        return 1 if self.column is None else NUM_COLUMNS

    @property
    def columns(self) -> Columns:
        return Columns(self.column, self.same_replica)

    @property
    def reports(self) -> bool:
        """Whether this rank speaks for its replica where one rank must."""
        return not self.column


def check_layout(columns: Layout, num_ranks: int) -> None:
    """Raise `ValueError` if so many ranks cannot be arranged as `model.columns` says."""
    if num_ranks % ranks_per_replica(columns):
        raise ValueError(
            f"model.columns split needs two ranks for each replica, and there "
            f"{'is 1' if num_ranks == 1 else f'are {num_ranks}'}: give torchrun an even "
            "--nproc_per_node, or use --model.columns fused"
        )


def build_mesh(world: World, columns: Layout, timeout_seconds: float) -> Mesh:
    """Arrange all ranks as `model.columns` says; they call it together, after `check_layout`."""
    match columns:
        case "fused":
            return Mesh(
                replica=world.rank,
                num_replicas=world.size,
                column=None,
                same_replica=None,
                same_column=dist.group.WORLD if world.size > 1 else None,
            )
        case "split":
            return _split_mesh(world, timeout_seconds)
        case unknown:
            assert_never(unknown)


def _split_mesh(world: World, timeout_seconds: float) -> Mesh:
    device_mesh = _device_mesh(world, timeout_seconds)
    num_replicas = device_mesh.size(0)
    return Mesh(
        replica=device_mesh.get_local_rank("replica"),
        num_replicas=num_replicas,
        column=device_mesh.get_local_rank("column"),
        same_replica=device_mesh.get_group("column"),
        same_column=device_mesh.get_group("replica") if num_replicas > 1 else None,
    )


@waiting_for_ranks()
def _device_mesh(world: World, timeout_seconds: float) -> DeviceMesh:
    """Replicas × columns, of groups with our deadline; torch would give them half an hour."""
    ranks = torch.arange(world.size).view(-1, NUM_COLUMNS)
    deadline = collective_deadline(timeout_seconds)
    groups = [
        dist.new_subgroups_by_enumeration(lines.tolist(), timeout=deadline)[0]
        for lines in (ranks.T, ranks)
    ]
    return DeviceMesh.from_group(
        groups, world.device.type, ranks, mesh_dim_names=("replica", "column")
    )
