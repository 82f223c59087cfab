"""Generations in a store of this process, with a thread for each rank."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]  # not exported

from pipeline.ranks.failure import FirstFailure
from pipeline.ranks.generations import Generations, store_of_generation
from pipeline.run.ending import StopSource

SIZE = 3


@pytest.fixture
def store() -> HashStore:
    return HashStore()


@pytest.fixture
def generations(store: HashStore) -> Generations:
    return Generations(store, SIZE)


def meet(store: HashStore, rank: int, seconds: float = 30.0) -> int:
    return Generations(store, SIZE).meet(rank, seconds)


def test_all_ranks_meet_as_the_current_generation(
    store: HashStore, generations: Generations
) -> None:
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
    with pytest.raises(RuntimeError, match="not all ranks have come"):
        meet(store, 0, 0.1)
    generations.note_left()
    with pytest.raises(RuntimeError, match="left for good"):
        meet(store, 0)


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


def test_ranks_follow_while_there_are_steps(generations: Generations) -> None:
    assert not generations.may_follow(0, 9), "before the first step"
    generations.note_step(0)
    assert [generations.may_follow(number, 9) for number in range(5)] == [True] * 3 + [False] * 2
    assert not generations.may_follow(0, 0), "as often as is allowed"
    generations.note_asked()
    assert not generations.may_follow(0, 9)


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
