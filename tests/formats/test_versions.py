"""Every format carries a version: none means 1, and a newer one is refused with one sentence."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.metrics.rank_file import read_rank_file
from tests.formats.fixtures import (
    REPOSITORY,
    RUN,
    RUN_EPOCHS,
    RUN_SHARDS,
    ends_of_attempts,
    rows_of,
    run_module,
    unpack_beton,
    unpack_run,
    words_of,
)
from tests.pipeline.rank_jobs import Job

NEWER = 99


def with_version(path: Path, version: int | None) -> None:
    """Let a file of one JSON object name that version, or none."""
    path.write_text(json.dumps(_changed(json.loads(path.read_bytes()), version)))


def _changed(fields: dict[str, Any], version: int | None) -> dict[str, Any]:
    kept = {name: value for name, value in fields.items() if name != "format_version"}
    if version is None:
        return kept
    return kept | {"format_version": version, "added_later": 1}


def events_with_version(run: Path, version: int | None) -> None:
    rows = [_changed(row, version) if row["kind"] == "run" else row for row in rows_of(run)]
    (run / "events.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def checkpoints_with_version(run: Path, version: int | None) -> None:
    for path in run.glob("checkpoints/step-*/checkpoint.json"):
        with_version(path, version)


def predictions_with_version(run: Path, version: int | None) -> None:
    path = run / "predictions/val.npz"
    with np.load(path) as arrays:
        fields = _changed(dict(arrays), version)
    np.savez(path, **fields)


def rank_file_with_version(path: Path, version: int | None) -> None:
    first, rest = path.read_bytes().split(b"\n", 1)
    fields = _changed(json.loads(first.removeprefix(b"# ")), version)
    path.write_bytes(f"# {json.dumps(fields)}\n".encode() + rest)


def test_what_is_written_names_its_version(version: Path) -> None:
    run = version / "run"
    assert json.loads((run / "config.json").read_bytes())["format_version"] == 1
    starts = [row for row in rows_of(run) if row["kind"] == "run"]
    assert [row["format_version"] for row in starts] == [1] * len(starts)
    with np.load(run / "predictions/val.npz") as arrays:
        assert int(arrays["format_version"]) == 1
    line = (run / "metrics/rank-00000.prom").read_text().splitlines()[0]
    assert json.loads(line.removeprefix("# "))["format_version"] == 1
    manifest = json.loads((version / "shards/rgb/_info.json").read_bytes())
    assert manifest["format_version"] == 1


def test_without_a_version_it_is_the_first(version: Path, tmp_path: Path) -> None:
    """Before these formats carried one, nobody wrote it."""
    run = unpack_run(version, tmp_path)
    with_version(run / "config.json", None)
    events_with_version(run, None)
    predictions_with_version(run, None)
    rank_file = run / "metrics/rank-00000.prom"
    rank_file_with_version(rank_file, None)
    num_rows = ends_of_attempts(run)[-1]
    with_versions = words_of(version / "run", num_rows, tmp_path / "with versions")
    assert words_of(run, num_rows, tmp_path / "output") == with_versions
    assert read_rank_file(rank_file).writer.rank == 0
    words = [*RUN, "--epochs", RUN_EPOCHS, "--run-dir", run]
    words += ["--data.shards", version / "shards" / RUN_SHARDS]
    with Job(1, "pipeline.train", words) as job:
        assert job.wait() == [0], job.errors
    assert "nothing to do: 60 steps are done" in job.outputs[0]
    shards = version / "shards" / RUN_SHARDS
    with Job(1, "pipeline.evaluate", ["--run-dir", run, "--shards", shards]) as job:
        assert job.wait() == [0], job.errors


NEWER_FILES: dict[str, Callable[[Path], None]] = {
    "config.json": lambda run: with_version(run / "config.json", NEWER),
    "events.jsonl": lambda run: events_with_version(run, NEWER),
    "checkpoint.json": lambda run: checkpoints_with_version(run, NEWER),
}


@pytest.mark.parametrize("name", NEWER_FILES)
def test_training_refuses_what_is_newer(version: Path, name: str, tmp_path: Path) -> None:
    run = unpack_run(version, tmp_path)
    NEWER_FILES[name](run)
    before = (run / "events.jsonl").read_bytes()
    words = [*RUN, "--epochs", RUN_EPOCHS + 1, "--run-dir", run]
    words += ["--data.shards", version / "shards" / RUN_SHARDS]
    with Job(1, "pipeline.train", words) as job:
        assert job.wait() == [1]
    assert_refused(job.errors[0], name)
    if name != "checkpoint.json":
        assert (run / "events.jsonl").read_bytes() == before


def assert_refused(errors: str, name: str) -> None:
    *_, last = errors.splitlines()
    assert re.search(rf"^error: .*{re.escape(name)}|^error: .*checkpoint", last), errors
    assert f"has format version {NEWER}; " in last
    assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "module", "words"),
    [
        ("config.json", "pipeline.evaluate", ["--run-dir"]),
        ("checkpoint.json", "pipeline.evaluate", ["--run-dir"]),
        ("config.json", "pipeline.report", []),
        ("events.jsonl", "pipeline.report", []),
        ("events.jsonl", "launch", ["status"]),
    ],
)
def test_readers_refuse_what_is_newer(
    version: Path, name: str, module: str, words: list[str], tmp_path: Path
) -> None:
    run = unpack_run(version, tmp_path)
    NEWER_FILES[name](run)
    shards = ["--shards", version / "shards" / RUN_SHARDS] if "evaluate" in module else []
    done = run_module(module, *words, run, *shards, code=1)
    assert_refused(done.stderr, name)


def test_a_newer_shard_set_is_refused(version: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(version / "shards/rgb", shards)
    with_version(shards / "_info.json", NEWER)
    done = run_module("data_prep", "verify", shards, code=1)
    assert f"_info.json has format version {NEWER}; expected 1: use the version" in done.stderr


def test_a_newer_beton_is_refused(version: Path, tmp_path: Path) -> None:
    path = unpack_beton(version, "jpeg", tmp_path)
    content = path.read_bytes()
    assert content.count(b'"record_version": 1') == 1
    path.write_bytes(content.replace(b'"record_version": 1', b'"record_version": 9'))
    done = run_module("data_prep", "beton", version / "shards/jpeg", path, code=1)
    assert "has record version 9; expected 1" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_newer_rank_file_is_refused(version: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(version / "run/metrics/rank-00000.prom", tmp_path))
    assert read_rank_file(path).said == "completed"
    rank_file_with_version(path, NEWER)
    with pytest.raises(ValueError, match=rf"rank-00000\.prom has format version {NEWER}; "):
        read_rank_file(path)


@pytest.mark.slow
def test_newer_predictions_are_left_out(version: Path, tmp_path: Path) -> None:
    run = unpack_run(version, tmp_path)
    predictions_with_version(run, NEWER)
    run_module("pipeline.report", run)
    assert f"val.npz has format version {NEWER}; " in (run / "report.html").read_text()


def test_the_docs_name_every_format() -> None:
    page = (REPOSITORY / "docs/data-format.md").read_text()
    section = page[page.index("## What stays readable") :]
    names = ("_info.json", "OUT.beton", "config.json", "events.jsonl", "checkpoints/step-…")
    for name in (*names, "data.json", "predictions/val.npz", "metrics/rank-*.prom"):
        assert f"| `{name}` | 1 |" in section
