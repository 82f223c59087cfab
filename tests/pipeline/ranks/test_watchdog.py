"""Who is to blame for a hang, by what the ranks last said of themselves."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]  # not exported

from pipeline.config.schema import DistributedConfig
from pipeline.ranks.failure import FirstFailure
from pipeline.ranks.heartbeats import Heartbeat, judge
from pipeline.ranks.threads import Threads
from pipeline.ranks.watchdog import Watchdog, flight_record
from pipeline.run.directory import RunDirectory
from pipeline.run.phase import Phase
from tests.pipeline.worlds import SINGLE, fused

OVERDUE, AT_WORK = 61.0, 3.0
LIMIT = 1.0


def heartbeat(
    phase: Phase,
    seconds: float,
    *,
    is_waiting: bool = False,
    step: int = 6,
    count: int = 1,
    host: str = "n1",
) -> Heartbeat:
    return Heartbeat(
        count=count,
        host=host,
        phase=phase.text,
        step=step,
        seconds=seconds,
        is_waiting=is_waiting,
        limit_seconds=60.0,
    )


WAITS = heartbeat(Phase.AVERAGING, OVERDUE, is_waiting=True)
READS = heartbeat(Phase.READING, OVERDUE, host="n2")
WORKS = heartbeat(Phase.EVALUATING, AT_WORK)


def alive(*heartbeats: Heartbeat | None) -> str | None:
    """The verdict on ranks whose heartbeats go on."""
    later = [None if one is None else dataclasses.replace(one, count=2) for one in heartbeats]
    verdict = judge(heartbeats, later)
    return None if verdict is None else verdict.text


def test_one_that_stands_still_is_named_and_those_that_wait_for_it_are_not() -> None:
    assert alive(WAITS, READS, WAITS) == "rank 1 on n2 hangs, reading a batch after step 6 for 61 s"


def test_those_that_wait_for_one_at_work_wait_on() -> None:
    assert alive(WAITS, WORKS, WAITS) is None
    assert alive(WORKS, WORKS) is None


def test_one_that_is_done_is_not_named_and_nobody_waits_for_it() -> None:
    done = dataclasses.replace(WORKS, is_last=True)
    hangs = dataclasses.replace(READS, count=2)
    verdict = judge([done, READS, None], [done, hangs, done])
    assert verdict is not None
    assert verdict.ranks == (1,)
    waits = dataclasses.replace(WAITS, count=2)
    verdict = judge([WORKS, WAITS], [done, waits])
    assert verdict is not None
    assert verdict.text == f"all ranks wait for each other: rank 1, {WAITS}"
    assert judge([done, done], [done, done]) is None


def test_one_whose_heartbeat_stops_is_named_before_others() -> None:
    verdict = judge([WAITS, READS, READS], [dataclasses.replace(WAITS, count=2), READS, None])
    assert verdict is not None
    assert verdict.text == (
        "rank 1 on n2 gives no sign of life, reading a batch after step 6 for 61 s, "
        "rank 2 gives no sign of life: "
        "its process is stopped, or hangs in native code, or its host is gone"
    )


@pytest.mark.parametrize("has_heartbeat", [False, True])
def test_other_ranks_report_rank_0_only_if_it_is_silent(has_heartbeat: bool) -> None:
    """Whether it has ever left a heartbeat or not: nobody else would."""
    later = dataclasses.replace(WAITS, count=2)
    silent = judge(
        [READS if has_heartbeat else None, WAITS], [READS if has_heartbeat else None, later]
    )
    assert silent is not None
    assert silent.is_main_silent
    still_alive = dataclasses.replace(READS, count=2)
    for verdict in (
        judge([READS, WAITS], [still_alive, later]),
        judge([WAITS, READS], [later, READS]),
    ):
        assert verdict is not None
        assert not verdict.is_main_silent


def test_a_deadlock_names_those_that_are_behind() -> None:
    ahead = dataclasses.replace(WAITS, step=7)
    assert alive(ahead, WAITS) == (
        "all ranks wait for each other: rank 1, averaging gradients after step 6 for 61 s"
    )


def test_a_first_heartbeat_is_a_sign_of_life() -> None:
    new = heartbeat(Phase.COMPUTING, AT_WORK)
    assert judge([WAITS, None], [dataclasses.replace(WAITS, count=2), new]) is None


def test_the_flight_recorder_is_one_that_torch_has() -> None:
    assert flight_record().startswith(b"{")


class WatchersTime(Threads):
    """Time that passes only while a watchdog waits, and its thread, which is the caller's.

    Set in place of the module `time`, too.
    """

    def __init__(self) -> None:
        self.now = self.begin = 1000.0
        self.is_over = False

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        assert self.is_over or self.now < self.begin + 60
        return self.is_over

    def event(self) -> Any:
        return mock.Mock(wait=self.wait)

    def thread(self, target: Callable[[], None], name: str) -> Any:
        return mock.Mock()

    def one_more(self, name: str, begin: Callable[[], object] | None = None) -> Any:
        def submit(question: Callable[..., object], *arguments: object) -> Future[object]:
            answer = Future[object]()
            try:
                answer.set_result(question(*arguments))
            except RuntimeError as error:
                answer.set_exception(error)
            return answer

        return mock.Mock(submit=submit)


@pytest.mark.parametrize(
    ("silence", "said"),
    [
        (1.0, "rank 0 on .* hangs, computing gradients after step 6 "),
        (math.inf, "the store where the ranks meet does not answer; this host keeps it"),
    ],
)
def test_a_store_that_does_not_answer_for_a_moment_is_not_to_blame(
    silence: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be on a busy host: as long as for ranks it is waited for, too."""
    verdicts, time = list[FirstFailure](), WatchersTime()

    def answer(*_: object) -> object:
        if LIMIT < time.now - time.begin < LIMIT + silence:
            raise RuntimeError("Connection reset by peer")
        return mock.DEFAULT

    def end(_: Watchdog, verdict: FirstFailure) -> None:
        verdicts.append(verdict)
        time.is_over = True

    monkeypatch.setattr(Watchdog, "_end", end)
    for module in ("watchdog", "heartbeats"):
        monkeypatch.setattr(f"pipeline.ranks.{module}.time", time)
    store = HashStore()
    answering = mock.Mock(wraps=store)
    answering.set.side_effect = answering.check.side_effect = answer
    world = dataclasses.replace(SINGLE, store=store, watchdog_store=answering, threads=time)
    config = DistributedConfig(timeout_seconds=LIMIT)
    watchdog = Watchdog(world, fused(SINGLE), RunDirectory(Path("run")), config)
    watchdog.enter(Phase.COMPUTING, 6)
    watchdog._watch()
    (verdict,) = verdicts
    assert re.match(said, verdict.text), verdict


def test_one_that_watches_nothing_asks_nothing_of_the_store() -> None:
    """The rank that keeps it may have left."""
    store = mock.Mock()
    world = dataclasses.replace(SINGLE, store=store, watchdog_store=store)
    watchdog = Watchdog(world, fused(SINGLE), RunDirectory(Path("run")), DistributedConfig())
    watchdog.enter(Phase.READING, 0)
    assert not store.mock_calls
