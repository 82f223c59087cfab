"""What a rank has in memory when others are lost, and how all go on from it.

after each whole step   Memory.hold: where the step's weights are, and what is still due
a rank is lost          the others keep that, and meet its replacement (`pipeline.ranks`)
all have met            Survivors.choose: the latest step of which some rank has each column
                        Survivors.adopt: its ranks broadcast what they hold
"""

from __future__ import annotations

import copy
import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist

from pipeline.optim.replica import Replica
from pipeline.ranks.failure import waiting_for_ranks
from pipeline.ranks.mesh import Mesh
from pipeline.ranks.world import World
from pipeline.run.checkpoint import path_of
from pipeline.run.directory import RunDirectory
from pipeline.train.progress import Progress


class Stage(enum.IntEnum):
    """How far a rank is with what follows a step."""

    STEPPED = 0
    EVALUATED = 1
    """What was due is evaluated, and not saved."""
    DONE = 2


class Moment(NamedTuple):
    """A place between two steps; a later one is greater."""

    step: int
    stage: Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """The state of a moment."""

    moment: Moment
    progress: Progress
    best_top1: float | None
    """Of an evaluation that asks for a checkpoint, which is not saved yet."""
    state: Callable[[], dict[str, Any]]


class Memory:
    """Of one process: what it holds of the run, for as long as that is the state after a step."""

    def __init__(self) -> None:
        self.held: Held | None = None

    def hold(
        self,
        stage: Stage,
        progress: Progress,
        replica: Replica,
        world: World,
        best_top1: float | None = None,
    ) -> None:
        """From now on this is what a survivor goes on from; the weights are not copied.

        Not without supervisors, and not on a GPU: nobody has seen what a broken NCCL leaves there.
        """
        if world.generations is None or world.device.type == "cuda":
            return
        # The next forward pass changes these, before another rank can be missed in it.
        buffers = {name: value.clone() for name, value in replica.model.named_buffers()}

        def state() -> dict[str, Any]:
            held = replica.held_state()
            return {**held, "model": {**held["model"], **buffers}}

        self.held = Held(
            moment=Moment(progress.step, stage),
            progress=copy.deepcopy(progress),
            best_top1=best_top1,
            state=state,
        )

    def detach(self) -> None:
        """Hold the tensors alone: what they were part of, such as broken groups, can be freed."""
        if self.held is not None:
            state = self.held.state()
            self.held = replace(self.held, state=lambda: state)

    def forget(self) -> None:
        """Until the next `hold`, the state is not that after a step."""
        self.held = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Survivors:
    """The ranks that have what all go on from."""

    moment: Moment
    rank_of: Mapping[int | None, int]
    """By the column that it holds; None: both."""

    @property
    def rank(self) -> int:
        """One that stands for them."""
        return min(self.rank_of.values())

    @classmethod
    def choose(cls, columns: Sequence[int | None], moments: Sequence[Moment | None]) -> Self | None:
        """By the column that each rank holds, and the moment of which it has the state.

        None: no step is whole in memory.
        """
        kinds = set(columns)
        for moment in sorted({moment for moment in moments if moment is not None}, reverse=True):
            rank_of = {
                column: rank
                for rank, (column, theirs) in reversed(
                    list(enumerate(zip(columns, moments, strict=True)))
                )
                if theirs is not None and theirs.step == moment.step
            }
            if rank_of.keys() == kinds:
                return cls(moment=moment, rank_of=rank_of)
        return None

    @classmethod
    def find(cls, memory: Memory, run: RunDirectory, world: World, mesh: Mesh) -> Self | None:
        """All ranks call it together; None: the run begins, or goes on from a checkpoint.

        It does, too, if rank 0 was lost before the best checkpoint was written: its step must be
        done again, or the run would end with another best one.
        """
        if world.generation == 0:
            return None
        held = memory.held
        mine = None if held is None else (held.moment, held.progress.marked)
        columns, known = zip(*world.all_gather_object((mesh.column, mine)), strict=True)
        found = cls.choose(columns, [None if theirs is None else theirs[0] for theirs in known])
        best = [theirs[1] for theirs in known if found and theirs and theirs[0] == found.moment]
        is_there = not best or best[0] is None or path_of(run.checkpoints, best[0][0]).is_dir()
        return found if world.broadcast_object(is_there) else None

    def adopt(self, memory: Memory, replica: Replica, world: World, mesh: Mesh) -> Progress:
        """Bring the fresh `replica` of every rank to the moment, and hold it.

        Raises `LostRank` if another one is lost meanwhile.
        """
        held = memory.held
        source = self.rank_of[mesh.column]
        mine = None if held is None or held.moment != self.moment else held
        told = world.all_gather_object(None if mine is None else (mine.progress, mine.best_top1))
        progress, best_top1 = next(known for known in told if known is not None)
        state = held.state() if held is not None and world.rank == source else None
        replica.load_held_state(_broadcast(state, source, mesh.same_column))
        memory.hold(self.moment.stage, progress, replica, world, best_top1)
        return copy.deepcopy(progress)


class _Place(NamedTuple):
    """Of a tensor, in a state that is told to others."""

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype


@waiting_for_ranks()
def _broadcast(
    state: dict[str, Any] | None, source: int, group: dist.ProcessGroup | None
) -> dict[str, Any]:
    """The `state` of rank `source`, on all ranks of the group; None: this rank is alone in it."""
    if group is None:
        assert state is not None, "a rank that is alone has its own"
        return state
    told = [None if state is None else _outline(state)]
    dist.broadcast_object_list(told, src=source, group=group)
    outline = told[0]
    assert outline is not None
    filled: dict[str, Any] = _filled(
        outline, state, lambda tensor: dist.broadcast(tensor, source, group)
    )
    return filled


def _outline(value: Any) -> Any:
    match value:
        case torch.Tensor():
            return _Place(value.shape, value.stride(), value.dtype)
        case dict():
            return {key: _outline(part) for key, part in value.items()}
        case _:
            return value


def _filled(outline: Any, mine: Any, send: Callable[[torch.Tensor], object]) -> Any:
    """`outline` with the source's tensors; `mine` are this rank's, if it is the source."""
    if isinstance(outline, dict):
        return {
            key: _filled(part, None if mine is None else mine[key], send)
            for key, part in outline.items()
        }
    if not isinstance(outline, _Place):
        return outline
    tensor = mine
    if tensor is None:
        tensor = torch.empty_strided(outline.shape, outline.strides, dtype=outline.dtype)
    send(tensor.detach())
    return tensor
