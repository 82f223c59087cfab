"""Competitors run in turn; one that hangs, dies or is missing stops nobody."""

from __future__ import annotations

import dataclasses
import queue
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import competition
from benchmarks.competition import Competitor, Course, Process, Result, compete
from tests.machine import DEADLINE_SECONDS, is_running, wait_until


def competitor(behaviour: str, num_ranks: int = 1) -> Competitor:
    return Competitor(
        name=behaviour,
        module="tests.benchmarks.competitor",
        num_images=100,
        num_ranks=num_ranks,
        options=("--behaviour", behaviour),
    )


@pytest.fixture
def course(tmp_path: Path) -> Course:
    return Course(images=tmp_path, setting="original", scratch=tmp_path)


@pytest.fixture(autouse=True)
def _nobody_is_hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who leaves by itself may take long, on a busy machine."""
    monkeypatch.setattr(Process.close, "__defaults__", (DEADLINE_SECONDS,))


def let_only_one_be_late(monkeypatch: pytest.MonkeyPatch, is_silent: Callable[[], bool]) -> None:
    """Let the deadline of an answer pass where `is_silent` first, and no other however late."""
    was_late: list[bool] = []

    class Answers(queue.SimpleQueue[str]):
        def get(self, block: bool = True, timeout: float | None = None) -> str:
            assert timeout is not None
            while True:
                try:
                    return super().get(timeout=0.02)
                except queue.Empty:
                    if not was_late and is_silent():
                        was_late.append(True)
                        raise

    replaced = SimpleNamespace(SimpleQueue=Answers, Empty=queue.Empty)
    monkeypatch.setattr(competition, "queue", replaced)


def test_all_take_their_turn_in_each_round(course: Course, tmp_path: Path) -> None:
    result = compete([competitor("first"), competitor("second", 2)], course, 2)
    assert {name: len(rates) for name, rates in result.rates.items()} == {"first": 2, "second": 2}
    rows = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    turns = [(name, int(number)) for name, rank, number in rows if rank == "0"]
    warm_up = [("first", 1), ("second", 1)]
    assert turns == [*warm_up, ("first", 2), ("second", 2), ("first", 3), ("second", 3)]
    assert sorted(row for row in rows if row[0] == "second") == [
        ["second", rank, number] for rank in "01" for number in "123"
    ]
    assert "numpy" in result.versions["first"]
    assert not result.failed
    assert not result.missing


def test_one_that_hangs_is_ended_with_what_it_has_started(
    course: Course, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_only_one_be_late(monkeypatch, lambda: has_content(tmp_path / "hangs/0/pid"))
    quick = dataclasses.replace(course, round_seconds=3)
    result = compete([competitor("hangs"), competitor("goes on")], quick, 3)
    assert result.failed == {"hangs": "no answer within 3 s"}
    assert list(result.rates) == ["goes on"]
    assert len(result.rates["goes on"]) == 3
    sleeper = int((tmp_path / "hangs/0/pid").read_text())
    wait_until(lambda: not is_running(sleeper))  # a kill takes a moment


def has_content(path: Path) -> bool:
    return path.exists() and bool(path.read_text())


def test_one_that_does_not_get_ready_is_ended_before_the_rounds(
    course: Course, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_only_one_be_late(monkeypatch, lambda: has_content(tmp_path / "pid"))
    quick = dataclasses.replace(course, ready_seconds=5)
    result = compete([competitor("never gets ready"), competitor("looks for others")], quick, 1)
    assert result.failed == {"never gets ready": "no answer within 5 s"}
    assert list(result.rates) == ["looks for others"]


def test_one_that_dies_is_left_out(course: Course) -> None:
    names = ["breaks", "dies", "goes on"]
    result = compete([competitor(name) for name in names], course, 3)
    assert result.failed == {
        "breaks": "left with exit code 1, not an answer",
        "dies": "left with exit code 3, not an answer",
    }
    assert list(result.rates) == ["goes on"]


def test_one_that_is_not_installed_is_named(course: Course) -> None:
    result = compete([competitor("is not installed"), competitor("goes on")], course, 1)
    assert result.missing == {"is not installed": "No module named 'rival'"}
    assert not result.failed
    assert list(result.rates) == ["goes on"]


def test_one_may_have_an_interpreter_of_its_own(course: Course, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ntouch "$0 was run"\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    result = compete([dataclasses.replace(competitor("elsewhere"), python=str(python))], course, 1)
    assert list(result.rates) == ["elsewhere"]
    assert (tmp_path / "python was run").exists()


def test_ratios_are_taken_round_by_round() -> None:
    result = Result(rates={"ours": [10.0, 30.0], "rival": [5.0, 10.0]})
    figures = result.figures({"ours": ["rival", "absent"]})
    assert set(figures["ratios"]) == {"ours / rival"}
    assert figures["ratios"]["ours / rival"] == {
        "n": 2,
        "median": 2.5,
        "mean": 2.5,
        "min": 2.0,
        "max": 3.0,
    }
