"""Run directories: what is read from them, and that the same command goes on with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.formats import states
from tests.formats.fixtures import (
    CONTINUED,
    MORE_EPOCHS,
    RUN,
    RUN_EPOCHS,
    RUN_SHARDS,
    STEPS_PER_EPOCH,
    ends_of_attempts,
    keep_to_one_core,
    machine_class,
    rows_of,
    run_module,
    unpack_beton,
    unpack_run,
    words_of,
)
from tests.formats.make import result_of
from tests.formats.test_weights import compare, known_weights
from tests.pipeline.rank_jobs import Job

LAST_STEP = RUN_EPOCHS * STEPS_PER_EPOCH
REMOVED = {"metrics.exporter_linger_seconds"}
"""Fields of which older versions take their default when they are not saved."""


def train(shards: Path, run: Path, *options: object) -> str:
    """Train on, on one core; returns what the command said."""
    words = [*RUN, "--data.shards", shards, "--run-dir", run, *options]
    with Job(1, "pipeline.train", words, before=keep_to_one_core) as job:
        assert job.wait() == [0], job.errors
    return job.outputs[0]


def expected(version: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((version / "expected.json").read_bytes())
    return found


def test_the_events_are_of_every_kind(version: Path) -> None:
    """So that nothing below is held by too few of them."""
    rows = rows_of(version / "run")
    assert {row["kind"] for row in rows} >= {
        *("run", "train", "eval", "checkpoint", "alarm", "signal", "end")
    }
    ends = [row["outcome"] for row in rows if row["kind"] == "end"]
    assert ends == ["stopped", "failed", "stopped", "completed"]
    assert {row["reason"] for row in rows if row["kind"] == "alarm"} == {
        *("damaged_image", "not_learning")
    }
    own = [row["own_shards"] for row in rows if row["kind"] == "eval" and row["by"] == "evaluate"]
    assert own == [False, True, True]


def test_every_attempt_is_reported_as_before(version: Path, tmp_path: Path) -> None:
    ends = ends_of_attempts(version / "run")
    found = [
        words_of(version / "run", num_rows, tmp_path / str(number))
        for number, num_rows in enumerate(ends)
    ]
    assert found == expected(version)["attempts"]
    firsts = [attempt["status"][0].split()[1] for attempt in found]
    assert firsts == ["stopped", "failed:", "was", "stopped", "completed", "completed"]


@pytest.mark.slow
def test_the_report_tells_all_attempts(version: Path, tmp_path: Path) -> None:
    run = unpack_run(version, tmp_path)
    run_module("pipeline.report", run)
    page = (run / "report.html").read_text()
    for text in ("completed", "damaged", "10.00", f"{LAST_STEP}"):
        assert text in page
    for row in rows_of(run):
        if row["kind"] == "run" and row["resumed_from"] is not None:
            assert f"{row['resumed_from']}" in page


def test_a_run_is_evaluated_with_the_same_counts(version: Path, tmp_path: Path) -> None:
    run = unpack_run(version, tmp_path)
    words = ["--run-dir", run, "--shards", version / "shards" / RUN_SHARDS, "--json"]
    with Job(1, "pipeline.evaluate", words) as job:
        assert job.wait() == [0], job.errors
    found, wanted = json.loads(job.outputs[0]), expected(version)["evaluation"]
    assert Path(found["checkpoint"]).name == Path(wanted["checkpoint"]).name
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-6)
    assert wanted.keys() <= found.keys()
    for name in wanted.keys() - {"checkpoint", "loss", "seconds"}:
        assert found[name] == wanted[name], name
    assert rows_of(run)[-1]["by"] == "evaluate"


def test_a_run_goes_on(version: Path, tmp_path: Path) -> None:
    """With the weights of one that goes on today, and rows that older readers know."""
    run = unpack_run(version, tmp_path)
    before = (run / "events.jsonl").read_bytes()
    output = train(version / "shards" / RUN_SHARDS, run, "--epochs", MORE_EPOCHS)
    assert f"resumed from {run}/checkpoints/step-{LAST_STEP:08d}" in output
    assert (run / "events.jsonl").read_bytes().startswith(before)
    old, new = rows_of(version / "run"), rows_of(run)[before.count(b"\n") :]
    first, second, *_ = new
    assert first["kind"] == "start", "older readers skip it"
    assert second["resumed_from"] == LAST_STEP
    assert new[-1]["outcome"] == "completed"
    assert [row["step"] for row in new if row["kind"] == "train"] == list(
        range(LAST_STEP + 1, MORE_EPOCHS * STEPS_PER_EPOCH + 1)
    )
    for kind in ("run", "train", "eval", "checkpoint"):
        names = next(row for row in old if row["kind"] == kind).keys()
        assert all(names <= row.keys() for row in new if row["kind"] == kind), kind
        assert any(row["kind"] == kind for row in new), kind
    config, old_config = (
        json.loads((folder / "config.json").read_bytes()) for folder in (run, version / "run")
    )
    assert list(old_config) == [name for name in config if name in old_config]
    assert _leaves(old_config["config"]) - REMOVED <= _leaves(config["config"])
    state = states.load(states.newest(run))
    was = states.load(run / f"checkpoints/step-{LAST_STEP:08d}")
    assert states.names_and_types(state) == states.names_and_types(was)
    compare(known_weights(version)[CONTINUED], machine_class({}), result_of(run))


def _leaves(nested: dict[str, Any], prefix: str = "") -> set[str]:
    found = set()
    for name, value in nested.items():
        is_group = isinstance(value, dict)
        found |= _leaves(value, f"{prefix}{name}.") if is_group else {prefix + name}
    return found


def test_a_damaged_checkpoint_is_passed_over(version: Path, tmp_path: Path) -> None:
    run = unpack_run(version, tmp_path)
    older = sorted((run / "checkpoints").glob("step-*"))[-2]
    path = run / f"checkpoints/step-{LAST_STEP:08d}/state.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    output = train(version / "shards" / RUN_SHARDS, run, "--epochs", RUN_EPOCHS)
    assert f"resumed from {older}" in output
    assert (run / f"checkpoints/damaged-step-{LAST_STEP:08d}").is_dir()


@pytest.mark.slow
def test_a_beton_is_read_as_its_shards(version: Path, tmp_path: Path) -> None:
    """And so are the shards of encoding jpeg."""
    path = unpack_beton(version, "jpeg", tmp_path)
    found = []
    for number, reader in enumerate(([], ["--data.reader", "beton", "--data.beton", path])):
        run = tmp_path / str(number)
        options = ("--epochs", 1, "--metrics.enabled", "false", *reader)
        words = [word for word in RUN if word not in ("--metrics.exporter", "false")]
        words += ["--data.shards", version / "shards/jpeg", "--run-dir", run, *options]
        with Job(1, "pipeline.train", words, before=keep_to_one_core) as job:
            assert job.wait() == [0], job.errors
        found.append(states.sha256_of(states.load(states.newest(run))))
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_fork_begins_at_the_run(version: Path, tmp_path: Path) -> None:
    run, fork = unpack_run(version, tmp_path), tmp_path / "fork"
    output = train(
        version / "shards" / RUN_SHARDS,
        fork,
        *("--epochs", MORE_EPOCHS, "--fork-from", f"{run}@best"),
    )
    assert "forked from" in output
    assert rows_of(fork)[-1]["outcome"] == "completed"


def test_launch_reads_a_run_in_a_process_of_its_own(version: Path, tmp_path: Path) -> None:
    run = unpack_run(version, tmp_path)
    assert "completed" in run_module("launch", "status", run).stdout.splitlines()[0]
