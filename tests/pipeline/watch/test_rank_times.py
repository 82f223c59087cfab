"""Where the time of ranks goes, of a minute and of many ranks."""

from __future__ import annotations

from prometheus_client import Metric

from pipeline.metrics.rank_file import RankFile, Writer
from pipeline.watch.rank_times import RankTimes


def published(
    rank: int, computing: float, waiting: float, since: float = 0.0, pid: int = 1
) -> RankFile:
    """The file of a rank that has spent so many seconds in the two phases."""
    family = Metric("alexnet_step_seconds", "", "counter")
    for phase, seconds in (("forward_backward", computing), ("sync_wait", waiting)):
        family.add_sample(
            "alexnet_step_seconds_total", {"rank": str(rank), "phase": phase}, seconds
        )
    writer = Writer(
        rank=rank,
        local_rank=0,
        host=f"node{rank}",
        pid=pid,
        start_ticks=0,
        since=since,
        interval_seconds=2.0,
    )
    return RankFile(
        writer=writer, heartbeat=since, said="running", was_running=True, families=(family,)
    )


def shares(times: RankTimes, ranks: list[RankFile], now: float) -> list[tuple[float, float]]:
    times.add(ranks, now)
    rows = times.rows(ranks, "here", now)
    return [(row["shares"]["forward_backward"], row["shares"]["sync_wait"]) for row in rows]


def test_the_last_minute_counts() -> None:
    times = RankTimes()
    assert shares(times, [published(0, 3, 1)], 0) == [(0.75, 0.25)], "all there is"
    assert shares(times, [published(0, 3, 31)], 30) == [(0, 1)]
    assert shares(times, [published(0, 33, 31)], 60) == [(0.5, 0.5)]
    assert shares(times, [published(0, 63, 31)], 91) == [(1, 0)], "of 30 seconds after the first"


def test_a_rank_that_began_again_is_not_compared_with_the_process_before() -> None:
    times = RankTimes()
    shares(times, [published(0, 100, 100)], 0)
    assert shares(times, [published(0, 3, 1, since=9.0)], 10) == [(0.75, 0.25)]


def test_one_that_does_not_go_on_is_shown_with_all_its_time() -> None:
    times = RankTimes()
    for now in (0, 30, 300):
        found = shares(times, [published(0, 3, 1), published(1, 0, 0)], now)
        assert found == [(0.75, 0.25), (0, 0)]


def test_of_many_ranks_those_are_shown_that_others_wait_for() -> None:
    ranks = [published(rank, 100 - rank, rank) for rank in range(100)]
    ranks.insert(0, ranks.pop())
    times = RankTimes()
    times.add(ranks, 0)
    assert [row["rank"] for row in times.rows(ranks, "here", 0)] == [*range(32)]
