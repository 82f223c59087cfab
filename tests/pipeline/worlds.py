"""Worlds without processes: one rank alone, or one whose fellows hold what it holds itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch

from pipeline.ranks.launcher import Place
from pipeline.ranks.mesh import Grid, build_grid
from pipeline.ranks.world import World

T = TypeVar("T")

SINGLE = World(place=Place(), device=torch.device("cpu"), store=None, control=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class _World(World):
    def gather(self, value: T) -> list[T]:
        return [value] * self.size

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values.mul_(self.size)


def world_of_equals(size: int, rank: int = 0) -> World:
    """A world in which all ranks do the same."""
    place = Place(rank=rank, local_rank=rank, world_size=size, local_world_size=size)
    return _World(place=place, device=torch.device("cpu"), store=None, control=None)


def fused(world: World) -> Grid:
    """Each rank of the world is a replica."""
    return build_grid(world, "fused", timeout_seconds=60)
