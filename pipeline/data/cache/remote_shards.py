"""One split of a remote shard set, as open files: staged ahead of need, given up when passed."""

from __future__ import annotations

import contextlib
import heapq
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from pipeline.data.cache.shard_cache import ShardCache
from pipeline.data.order.shard_needs import ShardNeed

_LOOK_SECONDS = 0.5
"""Between two looks whether another job needs room."""


class RemoteShards:
    """Hands out the shards of one split of `cache`.

        shards.expect(training_needs(plan, lengths, seed, step, end_step))
        with shards.reading(number) as file: os.pread(file, …)      in any number of threads
        shards.passed(run_position(plan, step))                     now and then

    Positions are those of the needs. What raises what: see `ShardCache`.
    """

    are_lasting = False

    def __init__(self, cache: ShardCache, split: str, shard_lengths: tuple[int, ...]) -> None:
        self._cache = cache
        self._split = split
        self.shard_lengths = shard_lengths
        self._changed = threading.Condition()  # holds what follows
        self._readers: Counter[int] = Counter()
        self._last_needed: dict[int, int] = {}
        self._ends: list[int] = []  # a heap: when the needs that were handed on end
        self._position = 0
        self._plan = 0

    def expect(self, needs: Iterable[ShardNeed]) -> None:
        """Stage what `needs` lists, in its order, ahead of `passed`; an older list is forgotten."""
        with self._changed:
            self._plan += 1
            self._last_needed.clear()
            self._ends.clear()
            self._position = 0
            self._changed.notify_all()
            plan = self._plan
        self._cache.expect(
            self._hand_on(needs, plan), lambda _split, shard: self._is_wanted(shard, plan)
        )

    def _is_wanted(self, shard: int, plan: int) -> bool:
        with self._changed:
            return plan == self._plan and self._last_needed.get(shard, -1) >= self._position

    def _hand_on(self, needs: Iterable[ShardNeed], plan: int) -> Iterator[tuple[str, int]]:
        """The shards of `needs` that are not over yet, at most a whole split's number ahead."""
        for need in needs:
            with self._changed:
                while plan == self._plan and len(self._ends) >= len(self.shard_lengths):
                    self._changed.wait(_LOOK_SECONDS)
                    if self._cache.is_closed:
                        return
                    self._cache.give_way()
                if plan != self._plan:
                    return
                if need.last < self._position:
                    continue
                heapq.heappush(self._ends, need.last)
                self._last_needed[need.shard] = need.last
            yield self._split, need.shard

    @contextlib.contextmanager
    def reading(self, shard: int) -> Iterator[int]:
        """The shard as a file that is open while the block runs, staged now if it is not there."""
        with self._changed:
            self._readers[shard] += 1
        try:
            yield self._cache.descriptor(self._split, shard)
        finally:
            with self._changed:
                self._readers[shard] -= 1

    def passed(self, position: int) -> None:
        """Nothing before `position` is asked for again: release what only that needed.

        A shard that is released too soon is opened, and if need be staged, again.
        """
        with self._changed:
            self._position = position
            while self._ends and self._ends[0] < position:
                heapq.heappop(self._ends)
            for shard in self._cache.in_use(self._split):
                if self._last_needed.get(shard, -1) < position and not self._readers[shard]:
                    self._cache.release(self._split, shard)
            self._changed.notify_all()

    def give_up(self) -> None:
        """Let whoever waits for a shard of the cache fail now; it stages nothing any more."""
        self._cache.give_up()

    def close(self) -> None:
        """Stop staging ahead and release all shards that are not being read; not the cache."""
        with self._changed:
            self._plan += 1
            self._last_needed.clear()
        self.passed(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
