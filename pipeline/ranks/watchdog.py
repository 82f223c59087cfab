"""Ends a job in which a rank hangs, and says which one, where, and what it was doing.

    main thread   enter(phase) ── enter(phase) ── …
    watchdog      a heartbeat into the job's store, every few seconds: phase, step, since when
                  too long in one phase? ─▶ compare all heartbeats ─▶ a verdict into the store
                  a verdict? ─▶ stacks into RUN/hangs, one sentence, and out

`pipeline.ranks.heartbeats` compares, and has the store. Collectives have a later deadline of their
own, for when even this fails.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

import torch

from pipeline.config.schema import DistributedConfig
from pipeline.config.timeouts import (
    DUMP_SECONDS,
    FAREWELL_SECONDS,
    LATE_SECONDS,
    heartbeat_seconds,
    num_judged,
)
from pipeline.ranks.failure import FirstFailure
from pipeline.ranks.heartbeats import Board, Heartbeat, judge, silent_store
from pipeline.ranks.mesh import Mesh
from pipeline.ranks.world import World
from pipeline.run.directory import RunDirectory
from pipeline.run.ending import ExitCode
from pipeline.run.event_log import write_failure
from pipeline.run.phase import Phase


class Watchdog:
    """Watches one rank for the length of a `with` block, together with those of the others."""

    def __init__(
        self,
        world: World,
        mesh: Mesh,
        run: RunDirectory,
        config: DistributedConfig,
        *,
        is_resident: bool = False,
    ) -> None:
        """`is_resident` is that of `Phase.may_wait`."""
        self._world = world
        self._run = run
        self._config = config
        self._may_wait = partial(
            Phase.may_wait,
            is_main=world.is_main,
            is_split=mesh.same_replica is not None,
            is_resident=is_resident,
        )
        shortest = min(config.timeout_seconds, config.save_timeout_seconds)
        self._period = heartbeat_seconds(shortest)
        self._judging = num_judged(self._period) * self._period
        self._count = 0
        self._at = Phase.READING, 0, time.monotonic()
        self._board = Board(world.watchdog_store, world.size, self._period, world.threads)
        self._is_over = world.threads.event()
        self._has_told = False
        """Whether the verdict is said, and the stacks are written."""
        self._thread = world.threads.thread(self._watch, "watchdog")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Tell the others that this rank is done.

        End this process if the error follows from a verdict, by which other ranks have left.
        """
        self._is_over.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # of the store's connection, in whatever form
            if kind is None:
                self._board.post(self._world.rank, replace(self._heartbeat(), is_last=True))
            elif not self._has_told and (verdict := self._board.verdict()) is not None:
                self._end(verdict)

    def enter(self, phase: Phase, step: int) -> None:
        """The main thread is at `phase` from now on, after `step` steps."""
        self._at = phase, step, time.monotonic()

    def _heartbeat(self) -> Heartbeat:
        (phase, step, since), config = self._at, self._config
        is_saving = phase is Phase.SAVING
        return Heartbeat(
            count=self._count,
            host=socket.gethostname(),
            phase=phase.text,
            step=step,
            seconds=time.monotonic() - since,
            is_waiting=self._may_wait(phase),
            limit_seconds=config.save_timeout_seconds if is_saving else config.timeout_seconds,
        )

    def _watch(self) -> None:
        while not self._is_over.wait(self._period):
            self._count += 1
            heartbeat = self._heartbeat()
            try:
                self._board.post(self._world.rank, heartbeat)
                verdict = self._board.verdict()
                if verdict is None and heartbeat.is_overdue:
                    verdict = self._judge()
            except Exception:  # of the store's connection, in whatever form
                is_silent = time.monotonic() - self._board.answered > self._judging
                verdict = None
                if heartbeat.is_overdue and is_silent:
                    verdict = silent_store(self._world.environment)
            if verdict is not None:
                self._end(verdict)
                if not self._is_over.wait(LATE_SECONDS):  # the main thread has not noticed
                    os._exit(ExitCode.FAILED)
                return

    def _judge(self) -> FirstFailure | None:
        """Compare all heartbeats before and after a time in which every rank has some."""
        before = self._board.heartbeats()
        for _ in range(num_judged(self._period)):
            if self._is_over.wait(self._period):
                return None
            self._count += 1
            self._board.post(self._world.rank, self._heartbeat())
            if (verdict := self._board.verdict()) is not None:
                return verdict
        verdict = judge(before, self._board.heartbeats())
        return None if verdict is None else self._board.agree(verdict)

    def _end(self, verdict: FirstFailure) -> None:
        """Report the verdict and end this process: its main thread may never come back.

        What hangs may be the file system of the run, so nothing waits for it for long. Under
        supervisors only the ranks that the verdict names end; what they break frees the others.
        """
        self._has_told = True
        is_named = not verdict.ranks or self._world.rank in verdict.ranks
        is_supervised = self._world.environment.supervisor is not None
        goes_on = is_supervised and not is_named
        sentence = f"{verdict}; the stacks of all ranks are in {self._run.hangs}"
        try:
            if self._world.is_main or verdict.is_main_silent:
                os.write(2, f"error: {sentence}\n".encode(errors="replace"))
            traces = partial(self._leave_traces, sentence, is_last=not goes_on)
            dump = self._world.threads.thread(traces, "traces")
            dump.start()
            dump.join(DUMP_SECONDS)
            if self._world.is_main and self._world.size > 1 and not is_supervised:
                # It may keep the store, in which the others look for the verdict.
                time.sleep(2 * self._period + FAREWELL_SECONDS)
        finally:
            if not goes_on:
                os._exit(ExitCode.FAILED)

    def _leave_traces(self, sentence: str, *, is_last: bool) -> None:
        with contextlib.suppress(Exception):
            self._dump(self._run.hangs, sentence)
        if self._world.is_main and is_last:
            with contextlib.suppress(Exception):
                write_failure(self._run.events, sentence)

    def _dump(self, folder: Path, sentence: str) -> None:
        folder.mkdir(exist_ok=True)
        rank, heartbeat = self._world.rank, self._heartbeat()
        name = f"rank-{rank:05d}"
        with (folder / f"{name}.txt").open("w", errors="replace") as file:
            file.write(f"{sentence}\n\nrank {rank} on {heartbeat.host}, {heartbeat}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        record = flight_record()
        if record:
            (folder / f"{name}.collectives.json").write_bytes(record)


def flight_record() -> bytes:
    """The last collectives of this process, as torch's flight recorder has them (JSON)."""
    for name in ("_dump_fr_trace_json", "_dump_nccl_trace_json"):  # before and since torch 2.12
        dump: Callable[[], bytes] | None = getattr(torch._C._distributed_c10d, name, None)
        if dump is not None:
            return dump()
    return b""
