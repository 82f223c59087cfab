"""Worlds without processes: one rank alone, or one whose fellows hold what it holds itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch

from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.mesh import Mesh, build_mesh
from pipeline.ranks.world import World

T = TypeVar("T")

SINGLE = World(
    environment=LaunchEnvironment(), device=torch.device("cpu"), store=None, control=None
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _World(World):
    def all_gather_object(self, value: T) -> list[T]:
        return [value] * self.size

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        return values.mul_(self.size)


def world_of_equals(size: int, rank: int = 0) -> World:
    """A world in which all ranks do the same."""
    environment = LaunchEnvironment(
        rank=rank, local_rank=rank, world_size=size, local_world_size=size
    )
    return _World(environment=environment, device=torch.device("cpu"), store=None, control=None)


def fused(world: World) -> Mesh:
    """Each rank of the world is a replica."""
    return build_mesh(world, "fused", timeout_seconds=60)
