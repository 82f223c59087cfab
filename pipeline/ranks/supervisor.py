"""Looks after one rank, and forks another where it is lost: torchrun's worker is then this process.

    torchrun ── supervisor, which has imported all that a rank needs ──fork── rank
                    │ its rank has ended, or a watchdog's verdict names it
                    └──fork── another one, which the others meet (`pipeline.ranks.generations`)

A supervisor computes nothing and holds nothing of the run. What it cannot mend it passes on: it
ends as its rank has ended, and the launcher does what it does without supervisors.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from types import FrameType

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not exported

from data_prep.shard_set.streams import say
from pipeline.config.timeouts import ANSWER_OF_STORE_SECONDS, LATE_SECONDS, WATCH_SECONDS
from pipeline.ranks.connect import finding_ranks, store_of_attempt
from pipeline.ranks.failure import FirstFailure, leave
from pipeline.ranks.generations import Generations
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.run.ending import ExitCode, end_with_parent, handled_signals, how_killed


def supervise(
    environment: LaunchEnvironment,
    limit: int,
    rendezvous_seconds: float,
    run_rank: Callable[[LaunchEnvironment], int],
) -> int:
    """Run a rank, and others in its place up to generation `limit`; returns the exit code.

    This process must have no threads. If the last rank was killed by a signal, so is this process.
    Raises `RankFailure` if the store of the ranks is not there in time.
    """
    environment = replace(environment, supervisor=os.getpid())
    keeper = _keep_store(environment)
    try:
        with finding_ranks(rendezvous_seconds):
            store = store_of_attempt(environment, rendezvous_seconds)
        store.set_timeout(timedelta(seconds=ANSWER_OF_STORE_SECONDS))
        generations = Generations(store, environment.world_size)
        status = _Supervisor(environment, generations, limit, run_rank).run()
        if keeper is not None:
            with contextlib.suppress(RuntimeError):
                generations.wait_until_all_left(ANSWER_OF_STORE_SECONDS)
    finally:
        if keeper is not None:
            os.kill(keeper, signal.SIGKILL)
            os.waitpid(keeper, 0)
    return _leave_as(status, environment)


class _Supervisor:
    def __init__(
        self,
        environment: LaunchEnvironment,
        generations: Generations,
        limit: int,
        run_rank: Callable[[LaunchEnvironment], int],
    ) -> None:
        self._environment = environment
        self._generations = generations
        self._limit = limit
        self._run_rank = run_rank
        self._child: int | None = None
        self._is_asked = False
        self._has_told = False
        self._late: tuple[int, float] | None = None
        """A generation that waits for the rank, and since when."""
        for number in handled_signals():
            signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        self._is_asked = True
        if self._child is not None:
            os.kill(self._child, number)

    def run(self) -> int:
        """Returns the wait status of the last rank."""
        began = None
        while True:
            status = self._attend(replace(self._environment, began=began))
            began = time.time()
            with contextlib.suppress(RuntimeError):  # no store any more: no rank can follow
                if self._is_to_be_replaced(status):
                    continue
                self._generations.note_left()
            return status

    def _attend(self, environment: LaunchEnvironment) -> int:
        """Start a rank and wait for its end; returns its wait status."""
        handled = set(handled_signals())
        signal.pthread_sigmask(signal.SIG_BLOCK, handled)
        child = self._child = _fork(lambda: self._run_rank(environment))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)
        if self._is_asked:  # between two ranks
            os.kill(child, signal.SIGTERM)
        descriptor = os.pidfd_open(child)
        while not select.select([descriptor], [], [], WATCH_SECONDS)[0]:
            agent = environment.agent
            if agent not in (None, os.getppid()) and not self._is_asked:
                self._pass_on(signal.SIGTERM, None)
            with contextlib.suppress(RuntimeError):  # no store any more: the rank ends by itself
                if self._is_lost():
                    os.kill(child, signal.SIGKILL)
        os.close(descriptor)
        self._child = None
        return os.waitpid(child, 0)[1]

    def _is_lost(self) -> bool:
        """Whether the others say that the rank hangs, or wait for it in vain."""
        if self._is_asked and not self._has_told:
            self._generations.note_asked()
            self._has_told = True
        rank, generation = self._environment.rank, self._generations.current()
        if not self._generations.is_there(generation, rank):
            if self._late is None or self._late[0] != generation:
                self._late = generation, time.monotonic()
            return generation > 0 and time.monotonic() > self._late[1] + LATE_SECONDS
        verdict = self._generations.first_failure(generation)
        if verdict is None or rank not in verdict.ranks:
            return False
        time.sleep(WATCH_SECONDS)  # if its watchdog still runs, it writes the stacks and ends it
        return True

    def _is_to_be_replaced(self, status: int) -> bool:
        code, rank = os.waitstatus_to_exitcode(status), self._environment.rank
        if code == ExitCode.DONE or self._is_asked:
            return False
        how, failure = "has ended", None
        if code < 0:
            how = how_killed(-code)
            failure = FirstFailure(how, rank, socket.gethostname())
        generation = self._generations.end_of(rank, failure)
        if code == ExitCode.STOPPED and self._generations.was_asked_to_stop(generation):
            return False
        if not self._generations.may_follow(generation, self._limit):
            return False
        number = f"{generation + 1} of at most {self._limit}"
        sentence = f"rank {rank} {how}; another one takes its place (warm restart {number})"
        say(f"warning: {sentence}", stream=sys.stderr)
        return True


def _keep_store(environment: LaunchEnvironment) -> int | None:
    """On rank 0's side, unless the launcher keeps one: a process with the store of this attempt.

    It is no thread of the supervisor, which forks, and outlives rank 0.
    """
    if environment.rank or environment.is_store_kept:
        return None

    def keep() -> int:
        for number in handled_signals():
            signal.signal(number, signal.SIG_IGN)
        host, _, port = environment.rendezvous.rpartition(":")
        store = TCPStore(host, int(port), is_master=True, wait_for_workers=False)
        while store is not None:
            signal.pause()
        return ExitCode.DONE

    return _fork(keep)


def _fork(body: Callable[[], int]) -> int:
    """Run `body` in a child, which ends when this process is killed; returns the child's id."""
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code: int = ExitCode.FAILED
    try:
        end_with_parent(signal.SIGKILL)
        if os.getppid() != parent:
            leave(code)
        handled = handled_signals()
        for number in handled:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(handled))
        code = body()
    finally:
        leave(code)


def _leave_as(status: int, environment: LaunchEnvironment) -> int:
    """The exit code of a rank with this wait status; does not return if a signal has killed it."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # there is one of the rank, or none
        with contextlib.suppress(OSError):  # of SIGKILL
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    if code == ExitCode.STOPPED and environment.max_attempts:
        return ExitCode.DONE  # torchrun would undo the stop
    return code
