"""What the ranks say of themselves, where they leave it for each other, and who is to blame.

A rank that waits for others is never the one to blame while they are at work. A rank whose
heartbeat stops is: its process is stopped, or hangs without giving Python a turn, or its host is
gone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import ParamSpec, TypeVar

from torch.distributed import HashStore  # type: ignore[attr-defined]  # not exported
from torch.distributed.distributed_c10d import Store

from pipeline.ranks.failure import FirstFailure, from_store
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.threads import Threads

P = ParamSpec("P")
T = TypeVar("T")

_SILENT = "gives no sign of life"


@dataclass(frozen=True, kw_only=True, slots=True)
class Heartbeat:
    """What a rank last said of itself."""

    count: int
    """Of its heartbeats: another number is a sign of life."""
    host: str
    phase: str
    """Its text."""
    step: int
    seconds: float
    """In this phase."""
    is_waiting: bool
    limit_seconds: float
    is_last: bool = False
    """The rank has done its part: it is not watched any more."""

    @property
    def is_overdue(self) -> bool:
        return self.seconds > self.limit_seconds

    def __str__(self) -> str:
        return f"{self.phase} after step {self.step} for {self.seconds:.0f} s"


def judge(
    before: Sequence[Heartbeat | None], now: Sequence[Heartbeat | None]
) -> FirstFailure | None:
    """Who hangs, by all ranks' heartbeats at two times more than a period apart; None: nobody.

    A heartbeat is None before a rank's first.
    """
    watched = [rank for rank, last in enumerate(now) if last is None or not last.is_last]
    silent = {
        rank: f"rank {rank} on {new.host} {_SILENT}, {new}" if new else f"rank {rank} {_SILENT}"
        for rank, old, new in ((rank, before[rank], now[rank]) for rank in watched)
        if new is None or (old is not None and old.count == new.count)
    }
    if silent:
        reasons = "its process is stopped, or hangs in native code, or its host is gone"
        text = f"{', '.join(silent.values())}: {reasons}"
        return FirstFailure(text, is_main_silent=0 in silent, ranks=tuple(silent))
    overdue = [(rank, last) for rank in watched if (last := now[rank]) and last.is_overdue]
    busy = {
        rank: f"rank {rank} on {last.host} hangs, {last}"
        for rank, last in overdue
        if not last.is_waiting
    }
    if busy:
        return FirstFailure(", ".join(busy.values()), ranks=tuple(busy))
    if not overdue or len(overdue) < len(watched):  # somebody is at work: the others wait for it
        return None
    first = min(last.step for _, last in overdue)
    behind = [f"rank {rank}, {last}" for rank, last in overdue if last.step == first]
    return FirstFailure(f"all ranks wait for each other: {', '.join(behind)}")


def silent_store(environment: LaunchEnvironment) -> FirstFailure:
    """The verdict where the store does not answer. Nobody reads another's: each rank has its own.

    It is on rank 0 if that keeps the store, unless it is rank 0 that asks.
    """
    if environment.rank and not environment.is_store_kept:
        text = f"rank 0 {_SILENT}: the store that it keeps does not answer"
    else:
        keeper = "torchrun" if environment.is_store_kept else "this host"
        text = f"the store where the ranks meet does not answer; {keeper} keeps it"
    return FirstFailure(text, is_main_silent=True)


class Board:
    """Posts for this rank, and reads what all ranks have posted.

    A store whose keeper is stopped does not answer, whatever deadline it is given: it is asked in
    a thread of its own. Raises `TimeoutError` then, and `RuntimeError` if the keeper is gone.
    """

    def __init__(
        self, store: Store | None, num_ranks: int, timeout_seconds: float, threads: Threads
    ) -> None:
        """Without a store, in a job of one process, it is in this process."""
        self._store: Store = HashStore() if store is None else store
        self._num_ranks = num_ranks
        self._timeout = max(timeout_seconds, 1.0)
        self._asking = threads.one_more("watchdog-store")
        self.answered = time.monotonic()
        """When the store last did."""

    def _ask(self, question: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        answer = self._asking.submit(question, *args, **options).result(self._timeout)
        self.answered = time.monotonic()
        return answer

    def post(self, rank: int, heartbeat: Heartbeat) -> None:
        self._ask(self._store.set, f"pulse/{rank}", json.dumps(asdict(heartbeat)))

    def heartbeats(self) -> list[Heartbeat | None]:
        """The last of each rank."""
        texts = [self._ask(self._find, f"pulse/{rank}") for rank in range(self._num_ranks)]
        return [None if text is None else from_store(Heartbeat, text) for text in texts]

    def verdict(self) -> FirstFailure | None:
        """The one on ranks that hang; those that failed otherwise leave by themselves."""
        failure = self._ask(FirstFailure.find, self._store)
        return None if failure is None or failure.rank is not None else failure

    def agree(self, verdict: FirstFailure) -> FirstFailure:
        """Post the verdict, unless there is a failure already; returns what holds."""
        return self._ask(verdict.publish, self._store)

    def _find(self, key: str) -> bytes | None:
        return self._store.get(key) if self._store.check([key]) else None
