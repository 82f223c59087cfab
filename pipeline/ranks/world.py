"""The ranks of a job: how they talk and fail together, the same in a job of one rank."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from pipeline.ranks.failure import (
    FirstFailure,
    RankFailure,
    cause_of,
    sentence_of,
    waiting_for_ranks,
)
from pipeline.ranks.generations import Generations
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.links import Links
from pipeline.ranks.threads import THREADS, Threads

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """This process's view of the job."""

    environment: LaunchEnvironment
    device: torch.device
    store: Store | None
    control: dist.ProcessGroup | None
    watchdog_store: Store | None = None
    """Another connection to the store, for the watchdog's thread: each serves one thread at a time.

    It is made while all ranks meet: later, when the rank that keeps the store has left, connecting
    would take minutes.
    """
    generations: Generations | None = None
    """Under supervisors: those of the job."""
    generation: int = 0
    """The one that these ranks are."""
    links: Links = field(default_factory=Links)
    threads: Threads = THREADS

    @property
    def rank(self) -> int:
        return self.environment.rank

    @property
    def size(self) -> int:
        return self.environment.world_size

    @property
    def is_main(self) -> bool:
        return self.environment.rank == 0

    @waiting_for_ranks()
    def all_gather_object(self, value: T) -> list[T]:
        """The small picklable `value` of every rank, in rank order, on every rank."""
        if self.control is None:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    @waiting_for_ranks()
    def broadcast_object(self, value: T) -> T:
        """Rank 0's small picklable `value`, on every rank."""
        if self.control is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    @waiting_for_ranks()
    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Sum `values`, a tensor on `device`, element by element over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    @waiting_for_ranks()
    def start_max(self, values: torch.Tensor) -> dist.Work | None:
        """Replace `values` by their maximum over the ranks, once what is returned is waited for."""
        if self.control is None:
            return None
        work: dist.Work | None = dist.all_reduce(
            values, dist.ReduceOp.MAX, group=self.control, async_op=True
        )
        return work

    @waiting_for_ranks()
    def broadcast_tensors(self, tensors: Iterable[torch.Tensor]) -> None:
        """Fill tensors on `device` with rank 0's values, on every rank."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    @contextlib.contextmanager
    def fail_together(self) -> Iterator[None]:
        """Run the block on every rank; an error on one becomes the same `RankFailure` on all.

        The block must not contain collectives: a rank that failed would be missing in them.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as exception:
            error = exception
        sentence = None if error is None else sentence_of(error)
        outcomes = self.all_gather_object((socket.gethostname(), sentence))
        failed = [number for number, (_, text) in enumerate(outcomes) if text is not None]
        if failed:
            host, text = outcomes[failed[0]]
            is_everywhere = len({text for _, text in outcomes}) == 1
            who = "" if is_everywhere else f"rank {failed[0]} on {host}: "
            is_reported_here = self.rank in (0, failed[0])
            raise RankFailure(f"{who}{text}", is_reported_here=is_reported_here) from error

    def check_same_on_all_ranks(self, values: Mapping[str, object]) -> None:
        """Raise `RankFailure` on every rank if some rank holds another value of a name than rank 0.

        All ranks call it, with the same names and small picklable values.
        """
        first, *others = self.all_gather_object(values)
        for rank, other in enumerate(others, 1):
            for name, value in first.items():
                if other[name] != value:
                    raise RankFailure(
                        f"{name} is {value} on rank 0 and {other[name]} on rank {rank}: start all "
                        "ranks with the same command, on the same shard set",
                        is_reported_here=self.rank in (0, rank),
                    )

    def report_failure(self, error: Exception) -> RankFailure:
        """Publish what ends this rank, for the other ranks and for torchrun's summary.

        Returns the failure of the first rank to fail, which may be this one.
        """
        get_error_handler().record_exception(error)
        text, cause = sentence_of(error), cause_of(error)
        if self.generations is not None and cause == "lost_rank":
            self.generations.wait_for_cause(self.generation)
        if self.store is None:
            return RankFailure(text, is_reported_here=True, cause=cause)
        first = FirstFailure(text, self.rank, socket.gethostname(), cause)
        with contextlib.suppress(RuntimeError):  # the store may be gone already
            first = first.publish(self.store)
        is_reported_here = self.rank in (0, first.rank)
        return RankFailure(str(first), is_reported_here=is_reported_here, cause=first.cause)
