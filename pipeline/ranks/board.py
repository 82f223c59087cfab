"""Where the ranks leave their heartbeats and the verdict for each other: the job's store."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import ParamSpec, TypeVar

from torch.distributed import HashStore  # type: ignore[attr-defined]  # not exported
from torch.distributed.distributed_c10d import Store

from pipeline.ranks.failure import FirstFailure
from pipeline.ranks.judge import Heartbeat

P = ParamSpec("P")
T = TypeVar("T")


class Board:
    """Posts for this rank, and reads what all ranks have posted.

    A store whose keeper is stopped does not answer, whatever deadline it is given: it is asked in
    a thread of its own. Raises `TimeoutError` then, and `RuntimeError` if the keeper is gone.
    """

    def __init__(self, store: Store | None, num_ranks: int, timeout_seconds: float) -> None:
        """Without a store, in a job of one process, it is in this process."""
        self._store: Store = HashStore() if store is None else store
        self._num_ranks = num_ranks
        self._timeout = max(timeout_seconds, 1.0)
        self._asking = ThreadPoolExecutor(1, "watchdog-store")

    def _ask(self, question: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        return self._asking.submit(question, *args, **options).result(self._timeout)

    def post(self, rank: int, heartbeat: Heartbeat) -> None:
        self._ask(self._store.set, f"pulse/{rank}", json.dumps(asdict(heartbeat)))

    def heartbeats(self) -> list[Heartbeat | None]:
        """The last of each rank."""
        texts = [self._ask(self._find, f"pulse/{rank}") for rank in range(self._num_ranks)]
        return [None if text is None else Heartbeat(**json.loads(text)) for text in texts]

    def verdict(self) -> FirstFailure | None:
        """The one on ranks that hang; those that failed otherwise leave by themselves."""
        failure = self._ask(FirstFailure.find, self._store)
        return None if failure is None or failure.rank is not None else failure

    def agree(self, verdict: FirstFailure) -> FirstFailure:
        """Post the verdict, unless there is a failure already; returns what holds."""
        return self._ask(verdict.publish, self._store)

    def acknowledge(self, rank: int) -> None:
        """Say that this rank knows the verdict, and needs the store no more."""
        self._ask(self._store.set, f"parted/{rank}", "yes")

    def have_acknowledged(self) -> bool:
        """Whether all ranks have said so."""
        ranks = range(self._num_ranks)
        return all(self._ask(self._find, f"parted/{rank}") is not None for rank in ranks)

    def _find(self, key: str) -> bytes | None:
        return self._store.get(key) if self._store.check([key]) else None
