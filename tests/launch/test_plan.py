"""A plan is computed from what was measured or given, and from nothing else."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch.__main__ import main
from launch.forecast import Costs, expected_seconds
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import append
from tests.pipeline.fake_run import (
    checkpoint_fields,
    eval_fields,
    event,
    make_images,
    start_fields,
    train_fields,
    write_config,
    write_shard_set,
)

GIVEN = (
    *("--ranks", 8, "--step-seconds", 0.05, "--save-seconds", 6, "--evaluation-seconds", 20),
    *("--start-seconds", 40, "--samples", 1_281_167, "--classes", 1000),
)
FAILING = ("--mtbf-hours", 100, "--nodes", 2)


def planned(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main(["plan", "--json", *map(str, words)]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["plan", *map(str, words)]) == 1
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith("error: ")
    assert found.err.count("\n") == 1
    return found.err


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run of `cifar10` on two ranks of a CPU, which has trained, evaluated and saved."""
    directory = RunDirectory(tmp_path / "run")
    labels = np.arange(10)
    write_shard_set(tmp_path / "shards", make_images(labels), labels, [f"c{n}" for n in range(10)])
    write_config(directory, tmp_path / "shards")
    shutil.rmtree(tmp_path / "shards")
    begin = 1000.0
    rows: list[tuple[str, int, float, dict[str, Any]]] = [
        ("start", 0, 8.0, {"began": begin, "heard": None}),
        ("run", 0, 9.0, start_fields()),
        ("train", 5, 20.0, train_fields(5)),
        ("train", 10, 21.0, train_fields(10)),
        ("eval", 10, 23.0, eval_fields(1, 2, 10, 10)),
        ("checkpoint", 10, 23.5, checkpoint_fields("periodic")),
        ("end", 10, 24.0, {"outcome": "stopped"}),
    ]
    for kind, step, time, fields in rows:
        append(directory.events, event(kind, step, begin + time, **fields))
    return directory


def test_the_arithmetic_of_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, *GIVEN, "alexnet_fast")
    assert found["steps_per_epoch"] == 1_281_167 // 1024
    assert found["steps"] == 90 * found["steps_per_epoch"]
    assert found["images_per_second"] == pytest.approx(1024 / 0.05)
    assert found["saves"] == found["evaluations"] == 90
    assert found["wall_seconds"] == pytest.approx(found["steps"] * 0.05 + 90 * 26 + 40)
    assert found["rank_hours"] == pytest.approx(8 * found["wall_seconds"] / 3600)
    assert found["goodput"] == pytest.approx(found["steps"] * 0.05 / found["wall_seconds"])
    assert found["gradient_bytes"] == round(2 * 7 / 8 * 4 * 60_965_224)
    assert found["gradient_mbits"] == pytest.approx(8e-6 * found["gradient_bytes"] / 0.05)
    assert found["checkpoint_bytes"] == 8 * 60_965_224
    assert found["kept_bytes"] == 4 * found["checkpoint_bytes"]
    assert found["young_seconds"] is None, "nothing fails"
    assert found["failures"] == 0


def test_failures_and_the_best_interval(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, *GIVEN, *FAILING, "--restart-seconds", 15, "alexnet_fast")
    rate = 2 / 360_000
    costs = Costs(rate=rate, wait=6.0, counts=6.0, start=40.0, restart=15.0)
    work = found["steps"] * 0.05 + 90 * 20
    assert found["wall_seconds"] == pytest.approx(expected_seconds(work, work / 90, costs))
    assert found["failures"] == pytest.approx(rate * found["wall_seconds"])
    assert found["young_seconds"] == pytest.approx(math.sqrt(2 * 6 / rate))
    assert found["best_seconds"] == pytest.approx(found["young_seconds"], rel=0.01)
    assert found["best_wall_seconds"] <= found["wall_seconds"]
    brief = ("--save-wait-seconds", 0.1, "--restart-seconds", 15)
    lasting = planned(capsys, *GIVEN, *FAILING, *brief, "alexnet_fast")
    assert lasting["best_seconds"] == pytest.approx(math.sqrt(0.2 / rate), rel=0.01)
    assert lasting["best_wall_seconds"] < found["best_wall_seconds"]


def test_two_columns_are_one_replica_on_two_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, *GIVEN, "alexnet_2012", "--model.columns", "split")
    assert found["gradient_bytes"] == round(2 * 3 / 4 * 4 * 60_965_224 / 2)
    alone = planned(capsys, "--ranks", 2, *GIVEN[2:], "alexnet_2012", "--model.columns", "split")
    assert alone["gradient_bytes"] == 0


def test_a_run_gives_all_constants(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "--from-run", run.path, "--classes", 10)
    assert found["ranks"] == 2
    assert not found["is_on_gpus"]
    assert found["step_seconds"] == pytest.approx(1.0 / 5)
    assert sum(found["step_parts"].values()) == pytest.approx(found["step_seconds"])
    work, waits = found["steps"] * 0.2, found["steps"] * (0.02 + 0.1) / 5
    assert found["wall_seconds"] == pytest.approx(work + 10 * 2.0 + 10 * 0.5 + 19.0)
    assert found["goodput"] == pytest.approx((work - waits) / found["wall_seconds"])
    again = ("cifar10", "--global_batch_size", 128, "--epochs", 20)
    longer = planned(capsys, "--from-run", run.path, "--classes", 10, *again)
    assert longer["steps"] == 2 * found["steps"]
    lines = main(["plan", "--from-run", str(run.path), "--classes", "10"])
    text = capsys.readouterr().out
    assert lines == 0
    assert "rank-hours" in text
    assert "forward_backward 140.0 ms" in text


def test_what_is_not_measured_has_to_be_given(
    run: RunDirectory, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = refused(capsys, "alexnet_fast")
    for option in (
        *("--ranks", "--samples", "--classes", "--step-seconds", "--evaluation-seconds"),
        *("--save-seconds", "--start-seconds"),
    ):
        assert f"{option}," in text
    assert "--restart-seconds" not in text, "as a start"
    assert "--from-run RUN of a run of this recipe on these ranks" in text
    assert "what is to be planned is missing" in refused(capsys)
    assert "not a run directory" in refused(capsys, "--from-run", tmp_path / "none")
    other = refused(capsys, "--from-run", run.path, "--ranks", 8)
    assert "--ranks is 8, and the run has measured a step on 2: give --step-seconds" in other
    batch = ("cifar10", "--global_batch_size", 64)
    other = refused(capsys, "--from-run", run.path, *batch)
    assert "global_batch_size of the plan is 64, and of the run 128" in other
    assert planned(capsys, "--from-run", run.path, "--classes", 10, "--step-seconds", 1, *batch)


def test_failures_that_ranks_survive_cost_no_work(capsys: pytest.CaptureFixture[str]) -> None:
    given, warm = (*GIVEN, *FAILING), ("alexnet_fast", "--distributed.warm_restarts", 50)
    cold = planned(capsys, *given, *warm)
    kept = planned(capsys, *given, "--kept-ratio", 0.9, "--warm-seconds", 3, *warm)
    rate = 2 / 360_000
    costs = Costs(
        **{"rate": rate, "wait": 6.0, "counts": 6.0, "start": 40.0, "restart": 40.0},
        **{"kept": 0.9, "warm": 3.0},
    )
    work = kept["steps"] * 0.05 + 90 * 20
    assert kept["wall_seconds"] == pytest.approx(expected_seconds(work, work / 90, costs))
    assert kept["wall_seconds"] < cold["wall_seconds"]
    assert kept["best_seconds"] == pytest.approx(cold["best_seconds"] * math.sqrt(10), rel=0.02)
    missing = refused(capsys, *given, "--kept-ratio", 0.9, *warm)
    assert "give --warm-seconds" in missing
    idle = refused(capsys, *given, "--kept-ratio", 0.9, "--warm-seconds", 3, "alexnet_fast")
    assert "--kept-ratio is 0.9; expected 0, or a plan with --distributed.warm_restarts" in idle


def test_what_cannot_be_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    late = refused(capsys, *GIVEN, "--save-wait-seconds", 7, "alexnet_fast")
    assert "--save-wait-seconds is 7; expected at most --save-seconds, 6" in late
    few = refused(capsys, *GIVEN[:-4], "--samples", 9, "--classes", 10, "alexnet_fast")
    assert "global_batch_size is 1024, of 9 images" in few
    misplaced = refused(capsys, *GIVEN, "alexnet_fast", "--mtbf-hours", 5)
    assert "--mtbf-hours is an option of the launcher" in misplaced
    idle = refused(capsys, *GIVEN, "alexnet_fast", "--max-steps", 100)
    assert "--max-steps changes no plan, which is of all --epochs: leave it out" in idle


def test_a_run_that_gets_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    never = refused(capsys, *GIVEN, "--mtbf-hours", 0.0001, "--nodes", 100, "alexnet_fast")
    assert "would fail every 0.0036 s on average" in never
    rarely = ("--mtbf-hours", 0.001, "--checkpoint.every_epochs", 0)
    words = (*GIVEN, *rarely[:2], "alexnet_fast", *rarely[2:])
    found = planned(capsys, *words)
    assert (found["wall_seconds"], found["goodput"]) == (None, 0)
    assert found["best_wall_seconds"] > 0
    assert main(["plan", *map(str, words)]) == 0
    assert "for ever expected" in capsys.readouterr().out


def test_best_results_are_saved_beside_what_is_due(capsys: pytest.CaptureFixture[str]) -> None:
    seldom = ("alexnet_fast", "--checkpoint.every_epochs", 3)
    none, half, each = (
        planned(capsys, *GIVEN, "--best-ratio", ratio, *seldom) for ratio in (0, 0.5, 1)
    )
    assert [found["best_saves"] for found in (none, half, each)] == [0, 30, 60]
    assert [found["saves"] for found in (none, half, each)] == [30] * 3
    assert half["wall_seconds"] == pytest.approx(none["wall_seconds"] + 30 * 6)
    assert each["wall_seconds"] == pytest.approx(none["wall_seconds"] + 60 * 6)
    often = planned(capsys, *GIVEN, *FAILING, "alexnet_fast")
    each = planned(capsys, *GIVEN, *FAILING, "--best-ratio", 1, *seldom)
    assert each["wall_seconds"] == pytest.approx(often["wall_seconds"]), "the same saves"
    assert main(["plan", *map(str, GIVEN), "--best-ratio", "0.5", *map(str, seldom)]) == 0
    assert "30 saves, 30 more of best results and 90 evaluations" in capsys.readouterr().out


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_the_best_interval_is_no_worse_than_the_given_one(
    ratio: float, capsys: pytest.CaptureFixture[str]
) -> None:
    for every in (1, 2, 7):
        words = ("--best-ratio", ratio, "alexnet_fast", "--checkpoint.every_epochs", every)
        found = planned(capsys, *GIVEN, *FAILING, *words)
        assert found["best_wall_seconds"] <= found["wall_seconds"] * (1 + 1e-9)
