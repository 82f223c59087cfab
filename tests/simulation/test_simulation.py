"""Simulated runs in which things break, by seeds: nothing that must hold is violated."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from pipeline.run.directory import RunDirectory
from tests.simulation.__main__ import main
from tests.simulation.month import month
from tests.simulation.simulate import (
    SettingOf,
    Story,
    simulate,
    simulate_cache,
    small_world,
    warm_world,
)

NUM_SEEDS = 500
NUM_CACHES = 80
NUM_WARM = 80
_AT_ONCE = 50

FOUND = {
    286: "a clock that was set back hid how the job had ended: it was called failed for ever",
    810: "a stop that all ranks had agreed on was undone, as its save was killed: it was requeued",
    1909: "a request to stop that was removed came back with a power cut, and stopped another job",
    122: "a rank that had nothing to do with it was named for a disk that took no checkpoint",
    2619: "ranks that were done were named for one that hung at its end",
    5055: "a request that was heeded and removed came back with a power cut, and stopped a new job",
    3034: "a job that failed on a full disk behind a clock that was set back was queued again",
}
"""Seeds that found a fault of the product, which is mended."""


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, NUM_SEEDS, _AT_ONCE))
def test_nothing_is_violated(first: int) -> None:
    stories = {seed: simulate(seed) for seed in range(first, first + _AT_ONCE)}
    assert {seed: story.fault for seed, story in stories.items() if story.fault} == {}


@pytest.mark.slow
def test_a_day_of_a_thousand_ranks() -> None:
    story = simulate(0, partial(month, days=1))
    assert story.fault is None
    assert sum("outcome" in line for line in story.lines) > 1


@pytest.mark.slow
def test_nothing_of_warm_restarts_is_violated() -> None:
    stories = {seed: simulate(seed, warm_world) for seed in range(NUM_WARM)}
    assert {seed: story.fault for seed, story in stories.items() if story.fault} == {}
    is_warm = ["this rank goes on with what it has" in " ".join(s.lines) for s in stories.values()]
    assert any(is_warm)


@pytest.mark.slow
def test_nothing_of_a_cache_is_violated() -> None:
    stories = {seed: simulate_cache(seed) for seed in range(NUM_CACHES)}
    assert {seed: story.fault for seed, story in stories.items() if story.fault} == {}


def test_ranks_that_begin_anew_behind_a_clock_that_was_set_back_belong_to_their_job() -> None:
    """They wrote the first row, and a job that was stopped was called completed."""
    assert simulate(2910, warm_world).fault is None


def test_survivors_may_have_the_best_one_before_until_they_save_their_step_again() -> None:
    assert simulate(2876, warm_world).fault is None


def test_what_a_seed_of_a_cache_has_found_is_mended() -> None:
    """A shard that the next epoch needs again had a lock until then, and took the room of others.

    In a cache of just the size that is asked for a rank failed.
    """
    assert simulate_cache(44).fault is None


@pytest.mark.parametrize("seed", [2913, 3084])
def test_a_file_stop_is_as_old_as_the_simulated_file_system_and_the_script_have_it(
    seed: int,
) -> None:
    """One that a start has left which waited for another, and one of the second of the begin."""
    assert simulate(seed).fault is None


def test_nobody_can_know_of_damage_behind_the_last_look_at_a_checkpoint() -> None:
    assert simulate(5804).fault is None


@pytest.mark.parametrize("seed", FOUND)
def test_what_a_seed_has_found_is_mended(seed: int) -> None:
    assert simulate(seed).fault is None


@pytest.mark.parametrize("setting_of", [small_world, month])
def test_such_jobs_begin_without_a_warning(setting_of: SettingOf, tmp_path: Path) -> None:
    for seed in range(200 if setting_of is small_world else 1):
        assert setting_of(seed, RunDirectory(tmp_path)).warnings() == []


@pytest.mark.parametrize("run", [simulate, simulate_cache])
def test_a_seed_is_replayed_exactly(run: Callable[[int], Story]) -> None:
    first, second = run(7), run(7)
    assert len(first.lines) > 5
    assert first == second


def test_one_seed_tells_its_story(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "3"]) == 0
    *story, last = capsys.readouterr().out.splitlines()
    assert any("saved step" in line for line in story)
    assert last == "seed 3: nothing is wrong"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("# nothing yet\n\n", "replays nothing: it lists no seed; expected one number a line"),
        ("12\nseven\n", "'seven' is no seed; expected one whole number a line"),
    ],
)
def test_a_seed_file_that_cannot_be_replayed_is_one_sentence(
    content: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "seeds"
    file.write_text(content)
    assert main(["--file", str(file)]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_a_seed_file_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "seeds"
    file.write_text("3  # the first to be seen\n8\n")
    assert main(["--file", str(file)]) == 0
    assert capsys.readouterr().out == "2 seeds, 0 with a fault\n"
