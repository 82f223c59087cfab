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
from functools import partial
from types import FrameType
from typing import TypeVar

from data_prep.shard_set.streams import say
from pipeline.config import timeouts
from pipeline.config.schema import DistributedConfig
from pipeline.ranks.connect import finding_ranks, killable, store_of_attempt
from pipeline.ranks.failure import FirstFailure, leave
from pipeline.ranks.generations import Generations
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.links import Links
from pipeline.ranks.stop import StopSignals
from pipeline.ranks.stores import host_store
from pipeline.run.ending import ExitCode, end_with_parent, handled_signals, how_killed

T = TypeVar("T")


def supervise(
    environment: LaunchEnvironment,
    config: DistributedConfig,
    run_rank: Callable[[LaunchEnvironment], int],
    signals: StopSignals,
) -> int:
    """Run a rank, and others in its place; returns the exit code.

    This process must have no threads. `signals` has what came before. If the last rank was killed
    by a signal, so is this process. Raises `RankFailure` if the store of the ranks is not there.
    """
    environment = replace(environment, supervisor=os.getpid())
    keeper, links, seconds = None, Links(), timeouts.rendezvous_seconds(config.timeout_seconds)
    try:
        with killable(), finding_ranks(seconds), links.noted():
            keeper = _keep_store(environment, seconds)
            store = store_of_attempt(environment, seconds)
        store.set_timeout(timedelta(seconds=timeouts.ANSWER_OF_STORE_SECONDS))
        links.limit(timeouts.ANSWER_OF_STORE_SECONDS)
        generations = Generations(store, environment.world_size, config.warm_restarts)
        status = _Supervisor(environment, config, generations, run_rank, signals).run()
        if keeper is not None:
            with contextlib.suppress(RuntimeError):
                generations.wait_until_all_left(timeouts.ANSWER_OF_STORE_SECONDS)
    finally:
        if keeper is not None:
            os.kill(keeper, signal.SIGKILL)
            os.waitpid(keeper, 0)
    return _leave_as(status, environment)


class _Supervisor:
    def __init__(
        self,
        environment: LaunchEnvironment,
        config: DistributedConfig,
        generations: Generations,
        run_rank: Callable[[LaunchEnvironment], int],
        signals: StopSignals,
    ) -> None:
        self._environment = environment
        self._generations = generations
        shortest = min(config.timeout_seconds, config.save_timeout_seconds)
        self._farewell = 2 * timeouts.heartbeat_seconds(shortest) + timeouts.WATCH_SECONDS
        """In which the watchdog of a rank that is named finds the verdict and writes the stacks."""
        self._run_rank = run_rank
        self._child: int | None = None
        self._is_asked = False
        self._has_store = True
        self._late: tuple[int, float] | None = None
        """A generation that waits for the rank, and since when."""
        for number in handled_signals():
            signal.signal(number, self._pass_on)
        if signals.noted is not None:
            self._is_asked = True

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
            if not self._ask(partial(self._is_to_be_replaced, status), otherwise=False):
                self._ask(self._generations.note_left, otherwise=None)
                return status

    def _ask(self, question: Callable[[], T], *, otherwise: T) -> T:
        """`otherwise` without a store: then the rank ends by itself, and no other one can follow.

        One that has not answered is not asked again: its answer may come, to another question.
        """
        if self._has_store:
            try:
                return question()
            except RuntimeError:
                self._has_store = False
        return otherwise

    def _attend(self, environment: LaunchEnvironment) -> int:
        """Start a rank and wait for its end; returns its wait status."""
        handled = set(handled_signals())
        signal.pthread_sigmask(signal.SIG_BLOCK, handled)
        child = self._child = _fork(lambda: self._run_rank(environment))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)
        if self._is_asked:  # between two ranks
            os.kill(child, signal.SIGTERM)
        descriptor = os.pidfd_open(child)
        while not select.select([descriptor], [], [], timeouts.WATCH_SECONDS)[0]:
            agent = environment.agent
            if agent not in (None, os.getppid()) and not self._is_asked:
                self._pass_on(signal.SIGTERM, None)
            patience = self._ask(self._patience, otherwise=None)
            if patience is not None:
                select.select([descriptor], [], [], patience)
                os.kill(child, signal.SIGKILL)
        os.close(descriptor)
        self._child = None
        return os.waitpid(child, 0)[1]

    def _patience(self) -> float | None:
        """In how many seconds the rank is to be killed; None: it is not.

        It is if the others say that it hangs, or wait for it in vain.
        """
        if self._is_asked:
            self._generations.note_asked()
        rank, generation = self._environment.rank, self._generations.current()
        if not self._generations.is_there(generation, rank):
            if self._late is None or self._late[0] != generation:
                self._late = generation, time.monotonic()
            is_late = generation > 0 and time.monotonic() > self._late[1] + timeouts.LATE_SECONDS
            return 0.0 if is_late else None
        verdict = self._generations.first_failure(generation)
        return None if verdict is None or rank not in verdict.ranks else self._farewell

    def _is_to_be_replaced(self, status: int) -> bool:
        code, rank = os.waitstatus_to_exitcode(status), self._environment.rank
        if self._is_asked:
            self._generations.note_asked()
        if code == ExitCode.DONE or self._is_asked:
            return False
        how, failure = "has ended", None
        if code < 0:
            how = how_killed(-code)
            failure = FirstFailure(how, rank, socket.gethostname())
        generation = self._generations.end_of(rank, failure)
        stops = code == ExitCode.STOPPED and self._generations.was_asked_to_stop(generation)
        if stops or not self._generations.may_follow(generation):
            return False
        number = f"{generation + 1} of at most {self._generations.limit}"
        sentence = f"rank {rank} {how}; another one takes its place (warm restart {number})"
        say(f"warning: {sentence}", stream=sys.stderr)
        return True


def _keep_store(environment: LaunchEnvironment, seconds: float) -> int | None:
    """On rank 0's side, unless the launcher keeps one: a process with the store of this attempt.

    It is no thread of the supervisor, which forks, and outlives rank 0. Raises `RuntimeError` if
    there can be none, such as at a port that another program uses.
    """
    if not environment.hosts_store:
        return None
    reader, writer = os.pipe()

    def keep() -> int:
        for number in handled_signals():
            signal.signal(number, signal.SIG_IGN)
        try:
            store = host_store(environment.rendezvous, seconds)
        except RuntimeError as error:
            os.write(writer, str(error).encode())
            return ExitCode.FAILED
        os.close(writer)
        while store is not None:
            signal.pause()
        return ExitCode.DONE

    keeper = _fork(keep)
    os.close(writer)
    with os.fdopen(reader) as said:
        if fault := said.read():
            os.waitpid(keeper, 0)
            raise RuntimeError(fault)
    return keeper


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
