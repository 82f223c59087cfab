"""How simulated ranks meet, exchange values and keep a store: gloo and the TCPStore as they fail.

A peer that dies breaks its connections at once; one that is stopped, or whose host is gone or cut
off, breaks none: only a deadline ends the wait.

Longer than 250 lines: all that one rank may wait for another in is here.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from pipeline.ranks.threads import Threads
from tests.simulation.kernel import Host, Kernel, SimProcess
from tests.simulation.tasks import Condition, Tasks
from tests.simulation.threads import SimEvent, SimThread

STORE_SECONDS = 120.0
"""Deadline of a question to the store, as ranks that meet have it."""
_LATENCY_SECONDS = 0.002
_MOST_LAG_SECONDS = 0.5
"""Before a thread has its turn: the others have the processors."""


class Violation(BaseException):
    """What must always hold does not; no code of the product catches it."""


def can_talk(one: Host, other: Host) -> bool:
    """Whether what one of them sends reaches the other, or breaks at once."""
    if one.is_down or other.is_down:
        return False
    return one is other or not (one.is_cut_off or other.is_cut_off)


def _nothing(_key: str, _word: bytes) -> None:
    return


@dataclass(eq=False)
class Operation:
    """One collective: what each rank has given to it so far."""

    tag: str
    values: dict[int, Any] = field(default_factory=dict)
    result: list[Any] = field(default_factory=list)
    """The values by rank, once all are there."""
    passed: set[int] = field(default_factory=set)
    """Ranks that have the result: what becomes of them breaks nothing any more."""
    quiet_seconds: float = 0.0
    """For so long nothing happens by itself, once the last rank has come."""


@dataclass(frozen=True)
class Layout:
    """The processes of each host. One may stand for many ranks that are alike."""

    hosts: tuple[dict[int, range], ...]
    """For each host the ranks that have a process, and for which ranks each stands."""

    @classmethod
    def of(cls, num_hosts: int, ranks_per_host: int) -> Layout:
        """Each rank is a process."""
        ranks = range(num_hosts * ranks_per_host)
        firsts = ranks[::ranks_per_host]
        return cls(
            tuple(
                {rank: range(rank, rank + 1) for rank in ranks[first : first + ranks_per_host]}
                for first in firsts
            )
        )

    @property
    def size(self) -> int:
        return sum(len(ranks) for host in self.hosts for ranks in host.values())


@dataclass(eq=False)
class Circle:
    """Ranks that are connected to each other."""

    processes: dict[int, SimProcess]
    left: set[int] = field(default_factory=set)
    """Those that have broken off their connections."""
    operations: dict[tuple[str, int], Operation] = field(default_factory=dict)

    def is_broken(self, me: SimProcess, operation: Operation) -> bool:
        """Whether one that the operation needs is seen to be gone."""
        return any(
            (other.is_dead or rank in self.left)
            and rank not in operation.passed
            and can_talk(me.host, other.host)
            for rank, other in self.processes.items()
        )

    def reaches_all(self, me: SimProcess, operation: Operation) -> bool:
        """Whether no host of those that the operation still needs is cut off from this one."""
        return all(
            one.is_dead or rank in operation.passed or can_talk(me.host, one.host)
            for rank, one in self.processes.items()
        )


class Attempt:
    """The ranks that torchrun has started together, and what connects them."""

    def __init__(
        self, kernel: Kernel, layout: Layout, chance: random.Random, *, is_warm: bool = False
    ) -> None:
        """`is_warm`: supervisors look after the ranks, and replace those that are lost."""
        self.kernel = kernel
        self.is_warm = is_warm
        self.keeper: SimProcess | None = None
        """Of the store, if that is not rank 0."""
        self.last_step = 0.0
        """When a rank last ended one."""
        self.former: dict[int, list[SimProcess]] = {}
        """Processes that were a rank before the one that is it now."""
        self.kept: dict[int, dict[int, int]] = {}
        """By generation and rank: the step of which it came with the state."""
        self.lacks_best: set[int] = set()
        """Generations to which a rank came whose best checkpoint is not there."""
        self.size = layout.size
        self._members = {rank: ranks for host in layout.hosts for rank, ranks in host.items()}
        self._process_of = {
            member: rank for rank, members in self._members.items() for member in members
        }
        self.num_processes = len(self._members)
        self.chance = chance
        self.processes: dict[int, SimProcess] = {}
        self.changed = Condition(kernel.tasks)
        """A value has come, or a process is gone, or a connection is back."""
        self.words: dict[str, bytes] = {}
        """The store."""
        self.on_word: Callable[[str, bytes], None] = _nothing
        self.trains: set[int] = set()
        """The ranks that have begun to train, and so have watchdogs."""
        self.begun_at = math.inf
        """When the first of them did."""
        self.rests_until = 0.0
        """Until then all ranks do steps, and nothing happens."""
        self.healed_at = -math.inf
        """When a host that was cut off came back last."""
        self.num_faults = 0
        """That have hit its ranks."""
        self.has_spoken = False
        """Whether a watchdog has said on standard error what ends it."""
        self.quiet_until: Callable[[], float] = lambda: 0.0
        self._circles = {} if is_warm else {0: Circle(self.processes)}
        kernel.listeners.append(lambda _: self.changed.notify())

    def members(self, rank: int) -> range:
        """The ranks that this one's process stands for."""
        return self._members[rank]

    def take_place(self, rank: int, process: SimProcess) -> None:
        """It is the rank from now on."""
        self.former.setdefault(rank, []).append(self.processes[rank])
        self.processes[rank] = process

    def process_of(self, rank: int) -> SimProcess:
        """The one that stands for the rank."""
        return self.processes[self._process_of[rank]]

    def key_of(self, key: str) -> str:
        """Where in the store is what a rank has left: its process has left it for all."""
        folder, _, rank = key.partition("/")
        return f"{folder}/{self._process_of[int(rank)]}" if folder == "pulse" else key

    def circle(self, generation: int) -> Circle:
        """Of those who meet as this generation: from the second on, once they come."""
        return self._circles.setdefault(generation, Circle({}))

    def give(
        self, circle: Circle, group: str, number: int, rank: int, tag: str, value: Any
    ) -> Operation:
        """A rank's part in a collective. Raises `Violation` if others are in another one."""
        operation = circle.operations.setdefault((group, number), Operation(tag))
        if operation.tag != tag:
            raise Violation(f"rank {rank} is in {tag}, and others are in {operation.tag}")
        for member in self.members(rank):
            operation.values[member] = value
        if len(operation.values) == self.size:
            operation.quiet_seconds = self.quiet_until() - self.kernel.tasks.now
            circle.operations.pop((group, number), None)
            self.changed.notify()
        return operation

    def wait(self, circle: Circle, rank: int, operation: Operation, seconds: float) -> list[Any]:
        """The values of all ranks; raises `RuntimeError` as gloo does."""
        me = circle.processes[rank]

        def is_whole_here() -> bool:
            return len(operation.values) == self.size and circle.reaches_all(me, operation)

        def is_over() -> bool:
            return is_whole_here() or circle.is_broken(me, operation)

        came = self.changed.wait(is_over, seconds)
        self.kernel.tasks.sleep(self.chance.uniform(0.1, 1) * _LATENCY_SECONDS)
        is_whole = is_whole_here()
        if is_whole and (not circle.is_broken(me, operation) or self.chance.random() < 0.5):
            operation.passed.add(rank)
            if not operation.result:
                operation.result = [operation.values[rank] for rank in range(self.size)]
            return list(operation.result)
        if came:
            raise RuntimeError("Connection closed by peer")
        raise RuntimeError(f"Timed out waiting {seconds * 1000:.0f}ms for recv operation")


class SimStore:
    """What the product uses of a TCPStore, kept by the process of rank 0 or one of its own."""

    def __init__(self, attempt: Attempt, me: SimProcess, prefix: str = "") -> None:
        self._attempt = attempt
        self._me = me
        self._prefix = prefix
        self._seconds = STORE_SECONDS

    def within(self, prefix: str) -> SimStore:
        """A `PrefixStore`."""
        return SimStore(self._attempt, self._me, f"{self._prefix}{prefix}/")

    def set_timeout(self, timeout: timedelta) -> None:
        self._seconds = timeout.total_seconds()

    def _key_of(self, key: str) -> str:
        return self._prefix + self._attempt.key_of(key)

    @property
    def _keeper(self) -> SimProcess | None:
        return self._attempt.keeper if self._attempt.is_warm else self._attempt.processes[0]

    @property
    def answers(self) -> bool:
        """Whether an answer, or the news that there will be none, comes at once."""
        keeper = self._keeper
        return (
            keeper is not None
            and can_talk(self._me.host, keeper.host)
            and not (keeper.is_stopped and not keeper.is_dead)
        )

    def _reach(self) -> dict[str, bytes]:
        changed = self._attempt.changed
        if not changed.wait(lambda: self.answers, self._seconds):
            raise RuntimeError("wait timeout: the store does not answer")
        if self._keeper is None or self._keeper.is_dead:
            raise RuntimeError("Connection reset by peer")
        return self._attempt.words

    def set(self, key: str, value: str) -> None:
        words, key = self._reach(), self._prefix + key
        words[key] = value.encode()
        self._attempt.on_word(key, words[key])

    def add(self, key: str, amount: int) -> int:
        words, key = self._reach(), self._prefix + key
        words[key] = str(int(words.get(key, b"0")) + amount).encode()
        return int(words[key])

    def get(self, key: str) -> bytes:
        return self._reach()[self._key_of(key)]

    def check(self, keys: list[str]) -> bool:
        words = self._reach()
        return all(self._key_of(key) in words for key in keys)

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        words, key = self._reach(), self._prefix + key
        if words.get(key, b"") == expected.encode():
            words[key] = desired.encode()
            self._attempt.on_word(key, words[key])
        return words.get(key, expected.encode())

    def as_store(self) -> Store:
        return cast(Store, self)


class _Event(SimEvent):
    """One that nobody waits for while nothing happens."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(attempt.kernel.tasks)
        self._attempt = attempt

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is not None:
            timeout = max(timeout, self._attempt.rests_until - self._attempt.kernel.tasks.now)
        return super().wait(timeout)


class _Asker(Executor):
    """Asks the store; an answer that does not come ends with the deadline of who asks."""

    def __init__(self, attempt: Attempt, store: SimStore) -> None:
        self._attempt, self._store = attempt, store

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return _Answer(self._attempt, self._store, lambda: fn(*args, **kwargs))


class _Answer(Future[Any]):
    def __init__(self, attempt: Attempt, store: SimStore, question: Callable[[], Any]) -> None:
        super().__init__()
        self._attempt, self._store, self._question = attempt, store, question

    def result(self, timeout: float | None = None) -> Any:
        if not self._attempt.changed.wait(lambda: self._store.answers, timeout):
            raise TimeoutError
        return self._question()


class _Result(Future[Any]):
    """What a `_Worker` has done."""

    def __init__(self, tasks: Tasks) -> None:
        super().__init__()
        self.arrived = Condition(tasks)

    def result(self, timeout: float | None = None) -> Any:
        if not self.arrived.wait(self.done, timeout):
            raise TimeoutError
        return super().result()


class _Worker(Executor):
    """Does one thing after another in a task of its own."""

    def __init__(self, attempt: Attempt, process: SimProcess) -> None:
        self._attempt, self._process = attempt, process
        self._queue: deque[tuple[_Result, Callable[[], Any]]] = deque()
        self._is_busy = False

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        tasks = self._attempt.kernel.tasks
        result = _Result(tasks)
        self._queue.append((result, lambda: fn(*args, **kwargs)))
        if not self._is_busy:
            self._is_busy = True
            tasks.start(self._process, self._work)
        return result

    def _work(self) -> None:
        tasks, chance = self._attempt.kernel.tasks, self._attempt.chance
        while self._queue:
            result, call = self._queue.popleft()
            tasks.sleep(chance.random() * _MOST_LAG_SECONDS)
            try:
                result.set_result(call())
            except Exception as error:
                result.set_exception(error)
            result.arrived.notify()
        self._is_busy = False


class SimThreads(Threads):
    """The threads of a simulated process."""

    def __init__(self, attempt: Attempt, process: SimProcess, store: SimStore) -> None:
        self._attempt, self._process, self._store = attempt, process, store

    def event(self) -> Any:
        return _Event(self._attempt)

    def thread(self, target: Callable[[], None], name: str) -> Any:
        return SimThread(self._attempt.kernel.tasks, self._process, target)

    def one_more(self, name: str, begin: Callable[[], object] | None = None) -> Executor:
        """Who says how to `begin` does so with its real thread, of which there is none here."""
        if begin is None:
            return _Asker(self._attempt, self._store)
        return _Worker(self._attempt, self._process)


class Link:
    """A rank's connections to the others."""

    def __init__(
        self, attempt: Attempt, rank: int, seconds: dict[str, float], generation: int = 0
    ) -> None:
        """`seconds` is the deadline of each group."""
        self.attempt = attempt
        self.rank = rank
        self.circle = attempt.circle(generation)
        self.circle.processes[rank] = attempt.processes[rank]
        self._seconds = seconds
        self._numbers = dict.fromkeys(seconds, 0)
        self.quiet_seconds = 0.0

    def start(self, group: str, tag: str, value: Any) -> Callable[[], list[Any]]:
        """Take part in a collective; returns what waits for it."""
        number = self._numbers[group]
        self._numbers[group] += 1
        operation = self.attempt.give(self.circle, group, number, self.rank, tag, value)

        def wait() -> list[Any]:
            return self.attempt.wait(self.circle, self.rank, operation, self._seconds[group])

        self._operation = operation
        return wait

    def exchange(self, group: str, tag: str, value: Any) -> list[Any]:
        wait = self.start(group, tag, value)
        operation, values = self._operation, wait()
        self.quiet_seconds = operation.quiet_seconds
        return values

    def start_max(self, values: torch.Tensor) -> dist.Work:
        wait = self.start("control", "max", values.clone())

        class Work:
            def wait(self) -> bool:
                values.copy_(torch.stack(wait()).amax(0))
                return True

        return cast(dist.Work, Work())
