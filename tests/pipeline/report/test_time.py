"""Where the time of a run went, on its page: the ledger, and the ranks side by side."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from pipeline.metrics.outcomes import read_run_status
from pipeline.metrics.publisher import Publisher
from pipeline.metrics.rank import RankMetrics
from pipeline.metrics.rank_file import rank_file_name
from pipeline.report.inputs import Missing
from pipeline.report.ranks import Ranks, compare_ranks
from pipeline.report.words import percent
from pipeline.run.console import duration
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import append, read_rows
from pipeline.run.ledger import SECOND_CLASSES, ledger_of
from tests.pipeline.fake_run import RunHistory, event, start_fields, train_fields, write_run
from tests.pipeline.report.html_tree import Element
from tests.pipeline.report.report_page import NAMES, page_of


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return write_run(tmp_path, NAMES)


def publish(run: RunDirectory, num_ranks: int, slow: int = 0) -> None:
    """Rank files of ranks that did 10 steps together; all but `slow` waited for it."""
    publishers = []
    for rank in range(num_ranks):
        registry = CollectorRegistry()
        metrics = RankMetrics(rank, rank, registry)
        waits = 0.0 if rank == slow else 0.3
        for _ in range(10):
            metrics.record_step(
                64, {"data_wait": 0.1, "forward_backward": 0.6 - waits, "sync_wait": waits}
            )
        metrics.record_outcome("completed")
        publishers.append(
            Publisher(run.metrics, registry, rank=rank, local_rank=rank, interval_seconds=2)
        )
    for publisher in publishers:
        publisher.close()


def add_energy(run: RunDirectory, rank: int, joules: float) -> None:
    path = run.metrics / rank_file_name(rank)
    name = "alexnet_gpu_energy_joules"
    labels = f'{{rank="{rank}",local_rank="{rank}"}}'
    text = f"# HELP {name} x\n# TYPE {name} counter\n{name}_total{labels} {joules}\n# EOF\n"
    path.write_bytes(path.read_bytes().removesuffix(b"# EOF\n") + text.encode())


def shares(stack: Element) -> list[float]:
    """The drawn parts of a bar."""
    parts = [part.attributes["style"] for part in stack.all("span")]
    return [float(style.partition("--share: ")[2].partition(";")[0]) for style in parts]


def test_the_bar_of_the_ledger_has_every_second(run: RunDirectory) -> None:
    history = RunHistory(run)
    history.write("run", 100, **start_fields(resumed_from=100))
    history.write("train", 105, **train_fields(105))
    history.write("run", 100, **start_fields(resumed_from=100))
    history.close()
    rows = list(read_rows(run.events))
    ledger = ledger_of(rows)
    assert ledger is not None
    assert ledger.num_lost_steps == 5
    card = page_of(run).with_id("time").one("figure", "ledger")
    assert sum(shares(card.one("div", "stack"))) == pytest.approx(1, abs=1e-3)
    said = [item.text for item in card.all("li")]
    assert said == [
        f"{SECOND_CLASSES[name]} {duration(seconds)} {percent(seconds / ledger.total_seconds)}"
        for name, seconds in ledger.seconds.items()
        if seconds > 0
    ]
    text = card.one("figcaption").text
    assert f"{percent(ledger.goodput)} went into steps that count; 5 steps were lost" in text
    assert "4 attempts, 1 preemption." in text
    assert "unknown: its submission is not in the events" in text


def test_gpu_hours_are_those_of_attempts_on_gpus(run: RunDirectory) -> None:
    assert "GPU-hours" not in page_of(run).with_id("headline").text
    history = RunHistory(run)
    history.write("run", 100, **start_fields(resumed_from=100) | {"device": "cuda"})
    history.close()
    *_, begun = read_rows(run.events)
    append(run.events, event("end", 100, begun.time + 3600, outcome="stopped"))
    assert "2.00 GPU-hours" in page_of(run).with_id("headline").text


def test_ranks_are_side_by_side(run: RunDirectory) -> None:
    publish(run, 3, slow=1)
    table = page_of(run).with_id("time").one("table", "ranks")
    rows = [[cell.text for cell in row.all("td")] for row in table.one("tbody").all("tr")]
    assert [row[:4] for row in rows] == [
        ["640", "7.0 s", "14.3 %", "42.9 %"],
        ["640", "7.0 s", "14.3 %", "0.0 %"],
        ["640", "7.0 s", "14.3 %", "42.9 %"],
    ]
    (first, second, _) = table.all("div", "stack")
    assert shares(first) == [0.14286, 0.42857, 0.42857]
    assert shares(second) == [0.14286, 0.85714]
    assert (
        "forward and backward 42.9 %, waiting for other ranks 42.9 %"
        in (first.attributes["aria-label"])
    )


def ranks_of(run: RunDirectory) -> Ranks | Missing:
    return compare_ranks(read_run_status(run, "here", time.time()))


@pytest.mark.slow
def test_of_many_ranks_the_slowest_are_shown(run: RunDirectory) -> None:
    publish(run, 20, slow=19)
    ranks = ranks_of(run)
    assert isinstance(ranks, Ranks)
    assert (ranks.num_ranks, len(ranks.shown), ranks.shown[-1].rank) == (20, 16, 19)
    assert "Of 20 ranks the 16 that waited least for others" in page_of(run).with_id("time").text


@pytest.mark.slow
def test_energy_is_there_if_it_is_known_of_all_gpus(run: RunDirectory) -> None:
    publish(run, 2)
    add_energy(run, 0, 1.8e6)
    assert "Energy" not in page_of(run).with_id("headline").text
    add_energy(run, 1, 1.8e6)
    assert "1.000 kWh, newest attempt" in page_of(run).with_id("headline").text


@pytest.mark.slow
def test_without_files_of_ranks_the_page_says_so(run: RunDirectory) -> None:
    assert "no metrics of ranks that can be read." in page_of(run).with_id("time").text
    publish(run, 2)
    path = run.metrics / rank_file_name(1)
    path.write_bytes(path.read_bytes()[:200])
    assert "Left out: 1 damaged file." in page_of(run).with_id("time").text
    (run.metrics / rank_file_name(0)).unlink()
    assert ranks_of(run) == Missing(
        "The run directory has no metrics of ranks that can be read: 1 damaged file."
    )
