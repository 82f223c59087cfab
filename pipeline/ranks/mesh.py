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
    """Raise `ValueError` if `num_ranks` cannot be arranged as `model.columns` says."""
    if num_ranks % ranks_per_replica(columns):
        raise ValueError(
            f"model.columns split needs two ranks for each replica, and there "
            f"{'is 1' if num_ranks == 1 else f'are {num_ranks}'}: give torchrun an even "
            "--nproc_per_node, or use --model.columns fused"
        )


@waiting_for_ranks()
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
            ranks = torch.arange(world.size).view(-1, NUM_COLUMNS)
            with world.links.noted():
                same_replica, same_column = (
                    dist.new_subgroups_by_enumeration(
                        lines.tolist(), timeout=collective_deadline(timeout_seconds)
                    )[0]
                    for lines in (ranks, ranks.T)
                )
            replica, column = divmod(world.rank, NUM_COLUMNS)
            return Mesh(
                replica=replica,
                num_replicas=len(ranks),
                column=column,
                same_replica=same_replica,
                same_column=same_column if len(ranks) > 1 else None,
            )
        case unknown:
            assert_never(unknown)
