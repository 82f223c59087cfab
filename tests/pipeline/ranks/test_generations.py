"""Generations in a store of this process, with a thread for each rank."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]  # not exported

from pipeline.ranks import generations as module
from pipeline.ranks.failure import FirstFailure
from pipeline.ranks.generations import Generations, store_of_generation
from pipeline.run.ending import StopSource
from tests.machine import DEADLINE_SECONDS

SIZE = 3
LIMIT = 9


@pytest.fixture
def store() -> HashStore:
    return HashStore()


@pytest.fixture
def generations(store: HashStore) -> Generations:
    return Generations(store, SIZE, LIMIT)


def meet(store: HashStore, rank: int, seconds: float = DEADLINE_SECONDS) -> int:
    return Generations(store, SIZE, LIMIT).meet(rank, seconds)


def test_all_ranks_meet_as_the_current_generation(
    store: HashStore, generations: Generations
) -> None:
    generations.note_step(0)
    with ThreadPoolExecutor(SIZE) as pool:
        assert list(pool.map(lambda rank: meet(store, rank), range(SIZE))) == [0] * SIZE
    generations.end(0)
    generations.end(0)  # by another rank: it is over only once
    assert generations.current() == 1
    with ThreadPoolExecutor(SIZE) as pool:
        assert list(pool.map(lambda rank: meet(store, rank), range(SIZE))) == [1] * SIZE


def test_who_waits_goes_on_to_the_next_one_if_a_rank_is_lost_meanwhile(
    store: HashStore, generations: Generations
) -> None:
    generations.note_step(0)
    with ThreadPoolExecutor(SIZE) as pool:
        early = [pool.submit(meet, store, rank) for rank in (0, 1)]
        while not generations.is_there(0, 1):
            time.sleep(0.01)
        assert generations.end_of(1, None) == 0
        assert meet(store, 2) == 1
        assert [found.result() for found in early] == [1, 1]


def test_nobody_waits_for_a_rank_that_has_left_or_does_not_come(
    store: HashStore, generations: Generations
) -> None:
    generations.note_step(0)
    assert generations.may_follow(0)
    with pytest.raises(RuntimeError, match="not all ranks have come"):
        meet(store, 0, 0.1)
    assert not generations.may_follow(0), "another one would wait in vain, too"
    generations.note_left()
    with pytest.raises(RuntimeError, match="left for good"):
        meet(store, 0)


def test_who_is_to_stop_waits_only_a_moment(
    store: HashStore, generations: Generations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank whose supervisor was killed does not come, and nobody says so."""
    generations.note_asked()
    monkeypatch.setattr(module, "HURRIED_SECONDS", DEADLINE_SECONDS)
    with ThreadPoolExecutor(SIZE) as pool:
        assert list(pool.map(lambda rank: meet(store, rank), range(SIZE))) == [0] * SIZE
    generations.note_step(0)
    generations.end(0)
    monkeypatch.setattr(module, "HURRIED_SECONDS", 0.2)
    with pytest.raises(RuntimeError, match="not all ranks have come"):
        meet(store, 0, 3600)


def test_ranks_that_all_survive_do_not_meet_for_ever(
    store: HashStore, generations: Generations
) -> None:
    """No supervisor has to replace any: where no group can be made, nobody else counts."""
    generations.note_step(0)
    with ThreadPoolExecutor(SIZE) as pool:
        for number in range(4):
            assert set(pool.map(lambda rank: meet(store, rank), range(SIZE))) == {number}
            generations.end(number)
        with pytest.raises(RuntimeError, match="too often"):
            list(pool.map(lambda rank: meet(store, rank), range(SIZE)))


def test_the_end_of_a_rank_ends_its_generation_once(
    store: HashStore, generations: Generations
) -> None:
    for rank in range(SIZE):
        store.set(f"here/0/{rank}", "")
    killed = FirstFailure("was killed by SIGKILL", 1, "a")
    assert generations.end_of(1, killed) == 0
    assert str(generations.first_failure(0)) == "rank 1 on a: was killed by SIGKILL"
    assert generations.end_of(2, FirstFailure("late", 2, "a")) == 0
    assert generations.current() == 1, "rank 2 is not there for the next one"
    assert generations.first_failure(1) is None


@pytest.mark.parametrize("end", [Generations.note_asked, Generations.note_left])
def test_ranks_follow_while_there_are_steps(
    store: HashStore, generations: Generations, end: Callable[[Generations], None]
) -> None:
    assert not generations.may_follow(0), "before the first step"
    generations.note_step(0)
    assert [generations.may_follow(number) for number in range(5)] == [True] * 3 + [False] * 2
    assert not Generations(store, SIZE, 0).may_follow(0), "as often as is allowed"
    end(generations)
    assert not generations.may_follow(0)


@pytest.mark.parametrize("source", StopSource)
def test_a_signal_to_a_rank_alone_asks_nobody_to_stop(
    generations: Generations, source: StopSource
) -> None:
    assert generations.was_asked_to_stop(0), "nobody says why the ranks have stopped"
    generations.note_stop(0, source)
    is_of_job = source in (StopSource.STOP_FILE, StopSource.END_OF_LAUNCHER)
    assert generations.was_asked_to_stop(0) == is_of_job
    generations.note_asked()
    assert generations.was_asked_to_stop(0)


def test_the_cause_is_waited_for_only_a_moment(store: HashStore, generations: Generations) -> None:
    generations.wait_for_cause(0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(generations.wait_for_cause, 1)
        FirstFailure("gone", 2, "a").publish(store_of_generation(store, 1))
        waiting.result()


def test_a_store_that_is_gone_keeps_no_rank_from_saving() -> None:
    """torchrun may keep it, and be killed: that is a reason to stop."""
    store = mock.Mock(spec=HashStore)
    store.set.side_effect = RuntimeError("Broken pipe")
    generations = Generations(store, SIZE, LIMIT)
    generations.note_step(0)
    generations.note_stop(0, StopSource.END_OF_LAUNCHER)
    assert store.set.call_count == 2
