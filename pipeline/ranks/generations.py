"""Which ranks are the job now, and how those of one generation find each other.

Under supervisors (`pipeline.ranks.supervisor`) a job outlives its ranks. When one is lost, its
generation is over: the others break off what they wait for, and meet the one that takes its place
as the next generation.

    here/G/R        rank R is there, for generation G
    productive/G    a step of generation G is done
    stop/G          what the ranks of generation G stop for
    asked           a supervisor was asked to stop
    missed          ranks have waited for another one in vain
    left            how many supervisors have left
"""

from __future__ import annotations

import contextlib
import time

from torch.distributed.distributed_c10d import PrefixStore, Store

from pipeline.config.timeouts import HURRIED_SECONDS, MEETING_POLL_SECONDS, WATCH_SECONDS
from pipeline.ranks.failure import FirstFailure
from pipeline.run.ending import StopSource

_CURRENT = "generation"
_MOST_UNPRODUCTIVE = 3
"""Generations in a row without a step: then it is not a rank's fault, and no other one helps."""


def store_of_generation(store: Store, generation: int) -> Store:
    """What the ranks of one generation tell each other in the `store` of the attempt."""
    return PrefixStore(f"of/{generation}", store)


class Generations:
    """Those of one attempt of the launcher; raises `RuntimeError` if the store is gone."""

    def __init__(self, store: Store, num_ranks: int, limit: int) -> None:
        """At most `limit` generations follow the first."""
        self._store = store
        self._num_ranks = num_ranks
        self.limit = limit

    def current(self) -> int:
        """0 is the first."""
        return int(self._store.compare_set(_CURRENT, "", "0"))

    def end(self, generation: int) -> None:
        """Let the next generation begin, unless `generation` is over already."""
        self._store.compare_set(_CURRENT, str(generation), str(generation + 1))

    def wait_for_cause(self, generation: int) -> None:
        """Give the supervisor of a lost rank a moment to say how it ended."""
        end = time.monotonic() + WATCH_SECONDS
        with contextlib.suppress(RuntimeError):
            while self.first_failure(generation) is None and time.monotonic() < end:
                time.sleep(MEETING_POLL_SECONDS)

    def first_failure(self, generation: int) -> FirstFailure | None:
        """What ends `generation`, if a rank of it has said so."""
        return FirstFailure.find(store_of_generation(self._store, generation))

    def meet(self, rank: int, limit_seconds: float) -> int:
        """Wait for the other ranks; returns the generation of which all are there.

        One that ends meanwhile is followed by the next. Raises `RuntimeError` if a rank has left
        for good, if not all come in time, or if no generation may follow: ranks that all survive
        meet without asking a supervisor.
        """
        begin, generation, everybody = time.monotonic(), -1, range(self._num_ranks)
        while time.monotonic() < begin + self._patience(limit_seconds):
            if generation != (current := self.current()):
                if current > 0 and not self._may_end(current - 1):
                    raise RuntimeError("ranks were lost too often, or before the first step")
                generation = current
                self._store.set(f"here/{generation}/{rank}", "")
            if all(self.is_there(generation, other) for other in everybody):
                return generation
            if self._has("left"):
                raise RuntimeError("a rank has left for good")
            time.sleep(MEETING_POLL_SECONDS)
        self._store.set("missed", "")
        raise RuntimeError("not all ranks have come")

    def _patience(self, limit_seconds: float) -> float:
        """A rank whose supervisor is gone does not come, and a job that is to stop has no time."""
        return min(limit_seconds, HURRIED_SECONDS) if self._has("asked") else limit_seconds

    def is_there(self, generation: int, rank: int) -> bool:
        """Whether `rank` has come to meet the others as `generation`."""
        return self._has(f"here/{generation}/{rank}")

    def note_step(self, generation: int) -> None:
        """A step of `generation` is done; without a store nobody has to know."""
        with contextlib.suppress(RuntimeError):
            self._store.set(f"productive/{generation}", "")

    def note_stop(self, generation: int, source: StopSource) -> None:
        """The ranks of `generation` stop; the same."""
        with contextlib.suppress(RuntimeError):
            self._store.set(f"stop/{generation}", source)

    def note_asked(self) -> None:
        """A supervisor was asked to stop, and with it the job."""
        self._store.set("asked", "")

    def note_left(self) -> None:
        """A supervisor leaves, and its rank is not replaced any more."""
        self._store.add("left", 1)

    def wait_until_all_left(self, limit_seconds: float) -> None:
        """Until no other supervisor needs the store."""
        end = time.monotonic() + limit_seconds
        while self._store.add("left", 0) < self._num_ranks and time.monotonic() < end:
            time.sleep(MEETING_POLL_SECONDS)

    def end_of(self, rank: int, failure: FirstFailure | None) -> int:
        """After the end of `rank`, by a `failure` that it could not tell: end its generation.

        Returns that.
        """
        generation = self.current()
        if not self.is_there(generation, rank):
            return generation - 1  # others have ended it
        if failure is not None:
            failure.publish(store_of_generation(self._store, generation))
        self.end(generation)
        return generation

    def may_follow(self, generation: int) -> bool:
        """Whether ranks that ended in `generation` are to be replaced."""
        return self._may_end(generation) and not any(map(self._has, ("asked", "missed", "left")))

    def _may_end(self, generation: int) -> bool:
        """Whether another generation may follow it."""
        recent = range(max(0, generation - _MOST_UNPRODUCTIVE + 1), generation + 1)
        was_productive = any(self._has(f"productive/{number}") for number in recent)
        return generation < self.limit and was_productive

    def was_asked_to_stop(self, generation: int) -> bool:
        """Whether the ranks of `generation` stopped for more than a signal to one of them alone."""
        if self._has("asked") or not self._has(f"stop/{generation}"):
            return True
        source = StopSource(self._store.get(f"stop/{generation}").decode())
        return source in (StopSource.STOP_FILE, StopSource.END_OF_LAUNCHER)

    def _has(self, key: str) -> bool:
        return bool(self._store.check([key]))
