"""Doors of the product's own modules that lead to simulated processes: ranks meet, and are forked.

With these the code of `connect`, of supervisors, of generations and of what comes before torchrun
runs as it is. What stands for a process group is a `Circle`.
"""

from __future__ import annotations

import contextlib
import copy
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol, TypeVar, cast
from unittest import mock

import torch
import torch.distributed as dist

from pipeline import start_ranks
from pipeline.config.schema import DistributedConfig
from pipeline.config.timeouts import rendezvous_seconds
from pipeline.ranks import connect, generations, supervisor
from pipeline.ranks.connect import collective_deadline
from pipeline.ranks.failure import waiting_for_ranks
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.links import Links
from pipeline.ranks.world import World
from pipeline.run.ending import handled_signals
from pipeline.train import __main__ as command
from pipeline.train import survival
from tests.simulation.kernel import Kernel
from tests.simulation.network import Attempt, Circle, Link, SimStore, SimThreads

T = TypeVar("T")


class SimLinks(Links):
    """A rank's connections, which it may break off."""

    def __init__(self) -> None:
        super().__init__()
        self.place: tuple[Attempt, Circle, int] | None = None

    def break_off(self) -> None:
        if self.place is not None:
            attempt, circle, rank = self.place
            circle.left.add(rank)
            attempt.changed.notify()


@dataclass(frozen=True, kw_only=True, slots=True)
class SimWorld(World):
    """A `World` whose ranks are simulated."""

    link: Link | None = None
    links: SimLinks = field(default_factory=SimLinks)

    @property
    def joined(self) -> Link:
        assert self.link is not None, "the ranks have met"
        return self.link

    @waiting_for_ranks()
    def all_gather_object(self, value: T) -> list[T]:
        return self.joined.exchange("control", "gather", value)

    @waiting_for_ranks()
    def broadcast_object(self, value: T) -> T:
        values: list[T] = self.joined.exchange("control", "broadcast", value)
        return values[0]

    @waiting_for_ranks()
    def start_max(self, values: torch.Tensor) -> dist.Work | None:
        return self.joined.start_max(values)


class Program(Protocol):
    """Of a rank, or of its supervisor."""

    attempt: Attempt
    world: SimWorld | None

    def train(self, world: World, signals: Any, memory: survival.Memory) -> int: ...


def _join(
    kernel: Kernel, world: SimWorld, config: DistributedConfig, fault: ValueError | None
) -> tuple[World, ValueError | None]:
    """`connect._join`."""
    me = kernel.running()
    program = cast(Program, me.program)
    attempt, rank = program.attempt, world.rank
    deadlines = {
        "control": collective_deadline(config.save_timeout_seconds).total_seconds(),
        "default": collective_deadline(config.timeout_seconds).total_seconds(),
        "meeting": rendezvous_seconds(config.timeout_seconds),
    }
    link = Link(attempt, rank, deadlines, world.generation)
    world.links.place = attempt, link.circle, rank
    link.exchange("meeting", "meeting", None)
    store = cast(SimStore, world.store)
    joined = SimWorld(
        environment=world.environment,
        device=world.device,
        store=world.store,
        control=None,
        watchdog_store=world.store,
        generations=world.generations,
        generation=world.generation,
        links=world.links,
        threads=SimThreads(attempt, me, store),
        link=link,
    )
    program.world = joined
    return joined, fault


def _keep_store(kernel: Kernel, environment: LaunchEnvironment) -> int | None:
    """`supervisor._keep_store`."""
    if not environment.hosts_store:
        return None
    attempt = cast(Program, kernel.running().program).attempt

    def keep() -> int:
        for number in handled_signals():
            signal.signal(number, signal.SIG_IGN)
        attempt.changed.notify()
        attempt.changed.wait(lambda: False)
        return 0

    attempt.keeper = kernel.fork("store", keep)
    return attempt.keeper.pid


def _fork_rank(kernel: Kernel, body: Callable[[], int]) -> int:
    """`supervisor._fork`."""
    name = kernel.running().name.removeprefix("supervisor of ")
    return kernel.fork(name, body).pid


def _broadcast(
    kernel: Kernel, state: dict[str, Any] | None, source: int, _group: object
) -> dict[str, Any]:
    """`survival._broadcast`."""
    world = cast(Program, kernel.running().program).world
    assert world is not None, "the ranks have met"
    with waiting_for_ranks():
        states = world.joined.exchange("default", f"the state of {source}", state)
    told: dict[str, Any] = copy.deepcopy(states[source])
    return told


@contextlib.contextmanager
def opened(kernel: Kernel) -> Iterator[None]:
    """Until the block ends."""

    def program() -> Program:
        return cast(Program, kernel.running().program)

    def store_of(_environment: LaunchEnvironment, _seconds: float) -> SimStore:
        return SimStore(program().attempt, kernel.running())

    def train(_command: object, world: World, signals: Any, memory: survival.Memory) -> int:
        return program().train(world, signals, memory)

    groups = SimpleNamespace(is_initialized=lambda: False, destroy_process_group=lambda: None)
    limits = SimpleNamespace(setrlimit=lambda *_: None, RLIMIT_CORE=0)
    doors: list[tuple[Any, str, Any]] = [
        (connect, "World", SimWorld),
        (connect, "_device", lambda *_: torch.device("cpu")),
        (connect, "keep_freed_memory", lambda: None),
        (connect, "dist", groups),
        (connect, "store_of_attempt", store_of),
        (connect, "_join", lambda *given: _join(kernel, *given)),
        (generations, "PrefixStore", lambda prefix, store: store.within(prefix)),
        (supervisor, "store_of_attempt", store_of),
        (supervisor, "_keep_store", lambda environment, _: _keep_store(kernel, environment)),
        (supervisor, "_fork", lambda body: _fork_rank(kernel, body)),
        (supervisor, "resource", limits),
        (supervisor, "select", SimpleNamespace(select=kernel.wait_for_child)),
        (survival, "_broadcast", lambda *given: _broadcast(kernel, *given)),
        (command, "train", train),
        (start_ranks, "_run", lambda _arguments: kernel.running().program()),
        (start_ranks, "logging", SimpleNamespace(disable=lambda: None)),
        (start_ranks, "socket", SimpleNamespace()),
    ]
    with contextlib.ExitStack() as stack:
        for module, name, value in doors:
            stack.enter_context(mock.patch.object(module, name, value))
        yield
