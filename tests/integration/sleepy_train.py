"""`pipeline.train`, but ranks sleep where a test says: this forces an order of events.

    torchrun … -m tests.integration.sleepy_train RANK:PLACE:TIMES:SECONDS[:MARK] … -- ARGUMENTS…

The rank sleeps at a `_PLACES` when it comes there after TIMES other times; with a MARK only if that
file is not there, which is made then. With `SECONDS+` it sleeps from then on each time, also behind
the beginning of the phase PLACE, and so do all ranks in turn if the RANK is `each`. At `blind` its
watchdog neither judges nor finds a verdict for so long, from when it would have judged.

    RANK:flipping:TIMES:TENSOR

After TIMES updates and one more, a bit of the tensor flips on that rank.

    RANK:raising:TIMES:TEXT[:MARK]

After TIMES passes the next one raises a `ValueError` on that rank; with a MARK only once.

    RANK:struck:TIMES:SIGNAL:MARK

After TIMES passes that rank waits for the file MARK, takes it away and is sent the signal of that
number, SIGKILL at some moment of the steps that follow; the process in its place is not.

    RANK:blamed:0:0

The watchdogs judge again if they blame any other rank: it may have stood still with the machine.
Collectives and farewells have time for that.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from pipeline.data.batches.loader import Loader
from pipeline.optim.replica import Replica
from pipeline.ranks import connect, watchdog
from pipeline.ranks.failure import FirstFailure, leave
from pipeline.ranks.heartbeats import Board, Heartbeat, judge
from pipeline.ranks.watchdog import Watchdog
from pipeline.run.phase import Phase
from pipeline.train import __main__ as train
from pipeline.train.components import Components
from tests.machine import DEADLINE_SECONDS, wait_until

_PLACES: dict[str, tuple[type[Any], str]] = {
    "reading": (Loader, "__next__"),
    "computing": (Replica, "add_gradients"),
    "watching": (Watchdog, "__enter__"),
}
"""Each is asleep before it begins."""


def fall_asleep(place: str, num_times: int, seconds: float, mark: Path | None) -> None:
    owner, name = _PLACES[place]
    plain = getattr(owner, name)
    times = iter(range(num_times, -1_000_000, -1))

    def sleepy(*arguments: Any, **options: Any) -> Any:
        if next(times) == 0 and not (mark and mark.exists()):
            if mark:
                mark.touch()
            time.sleep(seconds)
        return plain(*arguments, **options)

    setattr(owner, name, sleepy)


def be_slow(place: str, num_times: int, seconds: float, turn: int, every: int) -> None:
    """Sleep at every `every`-th time after `num_times`, the first one after `turn` more."""
    times = itertools.count(-num_times - turn)

    def doze() -> None:
        now = next(times)
        if now >= 0 and now % every == 0:
            time.sleep(seconds)

    if place in _PLACES:
        owner, name = _PLACES[place]
        plain = getattr(owner, name)

        def slow(*arguments: Any, **options: Any) -> Any:
            doze()
            return plain(*arguments, **options)

        setattr(owner, name, slow)
        return
    wanted, enter = Phase[place.upper()], Components.enter

    def slow_enter(components: Components, phase: Phase) -> None:
        enter(components, phase)
        if phase is wanted:
            doze()

    mock.patch.object(Components, "enter", slow_enter).start()


def flip(num_times: int, tensor: str) -> None:
    plain, times = Replica.update, itertools.count(-num_times)

    def update(replica: Replica, **options: Any) -> Any:
        result = plain(replica, **options)
        if next(times) == 0:
            values = replica.model.state_dict()[tensor].view(torch.int32)
            values[(0,) * values.ndim] ^= 1
        return result

    mock.patch.object(Replica, "update", update).start()


def fail(num_times: int, text: str, mark: Path | None) -> None:
    plain, times = Replica.add_gradients, itertools.count(-num_times)

    def add_gradients(replica: Replica, *arguments: Any, **options: Any) -> Any:
        if next(times) == 0 and not (mark and mark.exists()):
            if mark:
                mark.touch()
            raise ValueError(text)
        return plain(replica, *arguments, **options)

    mock.patch.object(Replica, "add_gradients", add_gradients).start()


def strike(num_times: int, number: int, mark: Path) -> None:
    plain, times = Replica.add_gradients, itertools.count(-num_times)
    done, is_sent = mark.with_suffix(".done"), threading.Event()

    def send() -> None:
        os.kill(os.getpid(), number)
        is_sent.set()

    def add_gradients(replica: Replica, *arguments: Any, **options: Any) -> Any:
        now = next(times)
        if now == 0 and done.exists():
            is_sent.set()
        elif now == 0:
            wait_until(mark.exists)
            mark.rename(done)
            if number == signal.SIGKILL:  # at any moment of these steps
                threading.Timer(random.Random(num_times).uniform(0, 0.05), send).start()
            else:
                send()
        elif now == 3:
            is_sent.wait()
        return plain(replica, *arguments, **options)

    mock.patch.object(Replica, "add_gradients", add_gradients).start()


def blame(rank: int) -> None:
    def judge_again(*heartbeats: Sequence[Heartbeat | None]) -> FirstFailure | None:
        verdict = judge(*heartbeats)
        return None if verdict is None or verdict.ranks != (rank,) else verdict

    mock.patch.object(watchdog, "judge", judge_again).start()
    mock.patch.object(watchdog, "FAREWELL_SECONDS", 12.0).start()
    mock.patch.object(connect, "collective_seconds", return_value=DEADLINE_SECONDS).start()


def be_blind(seconds: float) -> None:
    begin: list[float] = []
    plain = Board.verdict

    def judge(_: Watchdog) -> None:
        begin.append(time.monotonic())

    def verdict(board: Board) -> FirstFailure | None:
        is_blind = not begin or time.monotonic() < begin[0] + seconds
        if is_blind and threading.current_thread().name == "watchdog":
            return None
        return plain(board)

    mock.patch.object(Watchdog, "_judge", judge).start()
    mock.patch.object(Board, "verdict", verdict).start()


def main(words: Sequence[str]) -> int:
    divide = words.index("--")
    own, size = os.environ["RANK"], int(os.environ["WORLD_SIZE"])
    for word in words[:divide]:
        rank, place, num_times, seconds, *mark = word.split(":")
        if seconds.endswith("+"):
            turn, every = (int(own), size) if rank == "each" else (0, 1)
            if rank in (own, "each"):
                be_slow(place, int(num_times), float(seconds[:-1]), turn, every)
        elif place == "blamed":
            blame(int(rank))
        elif own == rank and place == "struck":
            strike(int(num_times), int(seconds), Path(mark[0]))
        elif own == rank and place == "flipping":
            flip(int(num_times), seconds)
        elif own == rank and place == "raising":
            fail(int(num_times), seconds, Path(mark[0]) if mark else None)
        elif own == rank and place == "blind":
            be_blind(float(seconds))
        elif own == rank:
            fall_asleep(place, int(num_times), float(seconds), Path(mark[0]) if mark else None)
    return train.main(words[divide + 1 :])


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
