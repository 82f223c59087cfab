"""Ends a job in which a rank hangs, and says which one, where, and what it was at.

    main thread   enter(phase) ── enter(phase) ── …
    watchdog      a heartbeat into the job's store, every few seconds: phase, step, since when
                  too long in one phase? ─▶ compare all heartbeats ─▶ a verdict into the store
                  a verdict? ─▶ stacks into RUN/hangs, one sentence, and out

A rank that waits for others is never the one to blame while they are at work. A rank whose
heartbeat stops is: its process is stopped, or hangs without giving Python a turn, or its host is
gone. Collectives have a later deadline of their own, for when even this fails.
"""

from __future__ import annotations

import contextlib
import enum
import faulthandler
import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

import torch
from torch.distributed.distributed_c10d import Store

from pipeline.config.schema import DistributedConfig
from pipeline.ranks.failure import FirstFailure
from pipeline.ranks.world import World
from pipeline.run.directory import RunDirectory
from pipeline.run.ending import ExitCode
from pipeline.run.events import write_failure

T = TypeVar("T")

_HEARTBEATS_PER_LIMIT = 10
_MAX_PERIOD_SECONDS = 10.0
_DUMP_SECONDS = 20.0
_ACKNOWLEDGE_SECONDS = 5.0
_LOOK_SECONDS = 0.05
_JUDGING_SECONDS = 2.0
"""On a busy host a thread may have no turn for a second: that is no silence yet."""
_SILENT = "gives no sign of life"
_SILENT_STORE = FirstFailure(
    f"rank 0 {_SILENT}: the store that it keeps does not answer", is_main_silent=True
)


class Phase(enum.StrEnum):
    """What a rank is at."""

    READING = "reading a batch"
    COMPUTING = "computing gradients"
    AVERAGING = "averaging gradients"
    UPDATING = "updating the weights"
    LOGGING = "adding up the log interval"
    EVALUATING = "evaluating"
    GATHERING = "gathering the evaluation's answers"
    SAVING = "saving"
    AGREEING = "agreeing on whether to stop"


_WAITING = frozenset(
    {Phase.AVERAGING, Phase.UPDATING, Phase.LOGGING, Phase.GATHERING, Phase.AGREEING}
)
"""In these a rank may stand still because another one does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Heartbeat:
    """What a rank last said of itself."""

    count: int
    """Of its heartbeats: another number is a sign of life."""
    host: str
    phase: Phase
    step: int
    seconds: float
    """In this phase."""
    is_waiting: bool
    limit_seconds: float

    @property
    def is_overdue(self) -> bool:
        return self.seconds > self.limit_seconds


def judge(
    before: Sequence[Heartbeat | None], now: Sequence[Heartbeat | None]
) -> FirstFailure | None:
    """Who hangs, by all ranks' heartbeats at two times more than a period apart; None: nobody.

    A heartbeat is None before a rank's first.
    """
    ranks = list(enumerate(zip(before, now, strict=True)))
    silent = {
        rank: f"rank {rank}{f' on {new.host}' if new else ''} {_SILENT}{_at(new)}"
        for rank, (old, new) in ranks
        if new is None or (old is not None and old.count == new.count)
    }
    if silent:
        reasons = "its process is stopped, or hangs in native code, or its host is gone"
        return FirstFailure(f"{', '.join(silent.values())}: {reasons}", is_main_silent=0 in silent)
    overdue = [(rank, new) for rank, (_, new) in ranks if new is not None and new.is_overdue]
    busy = [(rank, heartbeat) for rank, heartbeat in overdue if not heartbeat.is_waiting]
    if busy:
        hanging = (f"rank {rank} on {one.host} hangs{_at(one)}" for rank, one in busy)
        return FirstFailure(", ".join(hanging))
    if len(overdue) < len(now):  # somebody is at work, and the others wait for that
        return None
    first = min(heartbeat.step for _, heartbeat in overdue)
    behind = [
        f"rank {rank}{_at(heartbeat)}" for rank, heartbeat in overdue if heartbeat.step == first
    ]
    return FirstFailure(f"all ranks wait for each other: {', '.join(behind)}")


def _at(heartbeat: Heartbeat | None) -> str:
    if heartbeat is None:
        return ""
    return f", {heartbeat.phase} after step {heartbeat.step} for {heartbeat.seconds:.0f} s"


class Watchdog:
    """Watches one rank for the length of a `with` block, together with those of the others."""

    def __init__(
        self,
        world: World,
        run: RunDirectory,
        config: DistributedConfig,
        *,
        waiting: frozenset[Phase] = frozenset(),
    ) -> None:
        """`waiting`: the phases in which this run's ranks, unlike others, wait for each other."""
        self._world = world
        self._run = run
        self._config = config
        self._waiting = _WAITING | waiting
        if not world.is_main:
            self._waiting |= {Phase.SAVING}
        shortest = min(config.timeout_seconds, config.save_timeout_seconds)
        self._period = min(shortest / _HEARTBEATS_PER_LIMIT, _MAX_PERIOD_SECONDS)
        self._count = 0
        self._at = Phase.READING, 0, time.monotonic()
        self._store = _WatchdogStore(world.watchdog_store, world.size, self._period)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End this process if what was raised comes of a verdict that other ranks left by."""
        self._is_over.set()
        self._thread.join()
        verdict = None
        if kind is not None:
            with contextlib.suppress(Exception):  # of the store's connection, in whatever form
                verdict = self._store.verdict()
        if verdict is not None:
            self._end_job(verdict)

    def enter(self, phase: Phase, step: int) -> None:
        """The main thread is at `phase` from now on, after `step` steps."""
        self._at = phase, step, time.monotonic()

    def _heartbeat(self) -> Heartbeat:
        phase, step, since = self._at
        config = self._config
        is_saving = phase is Phase.SAVING
        return Heartbeat(
            count=self._count,
            host=socket.gethostname(),
            phase=phase,
            step=step,
            seconds=time.monotonic() - since,
            is_waiting=phase in self._waiting,
            limit_seconds=config.save_timeout_seconds if is_saving else config.timeout_seconds,
        )

    def _watch(self) -> None:
        while not self._is_over.wait(self._period):
            self._count += 1
            heartbeat = self._heartbeat()
            try:
                self._store.post(self._world.rank, heartbeat)
                verdict = self._store.verdict()
                if verdict is None and heartbeat.is_overdue:
                    verdict = self._judge()
            except Exception:  # of the store's connection, in whatever form
                verdict = _SILENT_STORE if heartbeat.is_overdue else None
            if verdict is not None:
                self._end_job(verdict)

    def _judge(self) -> FirstFailure | None:
        """Compare all heartbeats before and after a time in which every rank has some."""
        before = self._store.heartbeats()
        for _ in range(max(3, math.ceil(_JUDGING_SECONDS / self._period))):
            if self._is_over.wait(self._period):
                return None
            self._count += 1
            self._store.post(self._world.rank, self._heartbeat())
            if (verdict := self._store.verdict()) is not None:
                return verdict
        verdict = judge(before, self._store.heartbeats())
        return None if verdict is None else self._store.agree(verdict)

    def _end_job(self, verdict: FirstFailure) -> None:
        """Tell, and end this process: its main thread may never come back.

        What hangs may be the file system of the run, so nothing waits long for that.
        """
        sentence = f"{verdict}; the stacks of all ranks are in {self._run.hangs}"
        try:
            if self._world.is_main or verdict.is_main_silent:
                os.write(2, f"error: {sentence}\n".encode(errors="replace"))
            dump = threading.Thread(target=self._leave_traces, args=(sentence,), daemon=True)
            dump.start()
            dump.join(_DUMP_SECONDS)
            if verdict is not _SILENT_STORE:
                with contextlib.suppress(Exception):
                    self._wait_for_acknowledgements()
        finally:
            os._exit(ExitCode.FAILED)

    def _wait_for_acknowledgements(self) -> None:
        """Rank 0, which may keep the store, leaves after all that can have found the verdict."""
        self._store.acknowledge(self._world.rank)
        deadline = time.monotonic() + 2 * self._period + _ACKNOWLEDGE_SECONDS
        while (
            self._world.is_main
            and not self._store.have_acknowledged()
            and time.monotonic() < deadline
        ):
            time.sleep(_LOOK_SECONDS)

    def _leave_traces(self, sentence: str) -> None:
        with contextlib.suppress(Exception):
            self._dump(self._run.hangs, sentence)
        if self._world.is_main:
            with contextlib.suppress(Exception):
                write_failure(self._run.events, sentence)

    def _dump(self, folder: Path, sentence: str) -> None:
        folder.mkdir(exist_ok=True)
        heartbeat, name = self._heartbeat(), f"rank-{self._world.rank:05d}"
        with (folder / f"{name}.txt").open("w", errors="replace") as file:
            file.write(
                f"{sentence}\n\nrank {self._world.rank} on {heartbeat.host}{_at(heartbeat)}\n\n"
            )
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        record = flight_record()
        if record:
            (folder / f"{name}.collectives.json").write_bytes(record)


def flight_record() -> bytes:
    """The last collectives of this process, as torch's flight recorder has them (JSON)."""
    names = ("_dump_fr_trace_json", "_dump_nccl_trace_json")  # before and since torch 2.12
    dump: Callable[[], bytes] | None = None
    for name in names:
        dump = dump or getattr(torch._C._distributed_c10d, name, None)
    return b"" if dump is None else dump()


class _WatchdogStore:
    """Heartbeats and the verdict, in the job's store, or here if there is none.

    A store whose keeper is stopped does not answer, whatever deadline it is given: it is asked in
    a thread of its own. Raises `TimeoutError` then, and `RuntimeError` if the keeper is gone.
    """

    def __init__(self, store: Store | None, num_ranks: int, timeout_seconds: float) -> None:
        self._store = store
        self._num_ranks = num_ranks
        self._timeout = max(timeout_seconds, 1.0)
        self._asking = ThreadPoolExecutor(1, "watchdog-store")
        self._local: dict[str, bytes] = {}

    def _ask(self, question: Callable[[], T]) -> T:
        return self._asking.submit(question).result(self._timeout)

    def post(self, rank: int, heartbeat: Heartbeat) -> None:
        self._ask(partial(self._set, f"pulse/{rank}", json.dumps(asdict(heartbeat))))

    def heartbeats(self) -> list[Heartbeat | None]:
        """The last of each rank."""
        texts = [self._ask(partial(self._get, f"pulse/{rank}")) for rank in range(self._num_ranks)]
        return [None if text is None else _heartbeat_of(text) for text in texts]

    def verdict(self) -> FirstFailure | None:
        """The one on ranks that hang; those that failed otherwise leave by themselves."""
        failure = (
            None if self._store is None else self._ask(partial(FirstFailure.find, self._store))
        )
        return None if failure is None or failure.rank is not None else failure

    def agree(self, verdict: FirstFailure) -> FirstFailure:
        """Post the verdict, unless there is a failure already; returns what holds."""
        if self._store is None:
            return verdict
        return self._ask(partial(verdict.publish, self._store))

    def acknowledge(self, rank: int) -> None:
        """Say that this rank knows the verdict, and needs the store no more."""
        self._ask(partial(self._set, f"parted/{rank}", "yes"))

    def have_acknowledged(self) -> bool:
        """Whether all ranks have said so."""
        keys = [f"parted/{rank}" for rank in range(self._num_ranks)]
        return all(self._ask(partial(self._get, key)) is not None for key in keys)

    def _set(self, key: str, text: str) -> None:
        if self._store is None:
            self._local[key] = text.encode()
        else:
            self._store.set(key, text)

    def _get(self, key: str) -> bytes | None:
        if self._store is None:
            return self._local.get(key)
        return bytes(self._store.get(key)) if self._store.check([key]) else None


def _heartbeat_of(text: bytes) -> Heartbeat:
    heartbeat = Heartbeat(**json.loads(text))
    return replace(heartbeat, phase=Phase(heartbeat.phase))
