"""Each row of "Where do I add …" holds: one of its kind is added in a copy, and works there.

The type checker names the places that an addition by name must go to, and finds nothing where it
has gone to all of them. All are added to one copy, and a command proves several.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.additions.additions import ADDITIONS
from tests.additions.conftest import Added
from tests.additions.scratch import Scratch
from tests.formats import states
from tests.formats.fixtures import RUN, RUN_SHARDS, VERSIONS, unpack_run
from tests.pipeline.monitoring import require_tool
from tests.test_architecture import ROOT

SECTION = (ROOT / "docs" / "architecture.md").read_text().partition("## Where do I add …")[2]
ROWS = {
    row.split("**")[1]: row.split(" | ")[1]
    for row in SECTION.splitlines()
    if row.startswith("| **")
}
"""Where each addition goes, by the map."""

OLD = VERSIONS[-1]
"""What an older version has written."""

NAMES = {
    "a network": ("pipeline/config/model.py", "ModelName"),
    "an optimizer": ("pipeline/config/optim.py", "OptimizerName"),
    "a reader": ("pipeline/config/data.py", "ReaderName"),
    "an encoding": ("data_prep/shard_set/manifest.py", "Encoding"),
    "a follower": ("pipeline/follow/destination.py", "DestinationName"),
    "an exit code": ("pipeline/run/ending.py", "JobOutcome"),
}
"""What is added by a name, and where the names are declared."""


def files_for(addition: str) -> set[str]:
    """The files that the map names for it, a folder standing for a new module."""
    return set(re.findall(r"`((?:data_prep|pipeline|launch)/[\w/.-]+)`", ROWS[addition]))


def test_there_is_an_addition_for_each_row() -> None:
    assert {*ROWS} == {*ADDITIONS}


@pytest.mark.parametrize("addition", ROWS)
def test_a_row_names_files_that_are_there_and_three_at_most_or_says_why_not(addition: str) -> None:
    files = files_for(addition)
    assert all((ROOT / path).exists() for path in files)
    assert 0 < len(files) <= 3 or "more than three" in ROWS[addition]


@pytest.mark.slow
@pytest.mark.parametrize("addition", ADDITIONS)
def test_an_addition_touches_files_of_its_row_and_three_at_most(
    added: Added, addition: str
) -> None:
    files, named = added.files[addition], files_for(addition)
    new = {path for path in files if not (ROOT / path).exists()}
    assert files - new <= named
    assert {f"{Path(path).parent}/" for path in new} <= named
    assert 0 < len(files) <= 3 or "more than three" in ROWS[addition]


@pytest.mark.slow
def test_the_type_checker_names_each_place_that_a_new_name_must_go_to(
    scratch: Scratch, tmp_path: Path
) -> None:
    """With a name more of each kind: errors in the files of its row, and no other errors."""
    copy = Scratch(tmp_path, scratch.folder)
    for addition, (path, literal) in NAMES.items():
        copy.add_name(path, literal, addition)
    packages = ("-p", "data_prep", "-p", "launch", "-p", "pipeline")
    found = copy.fail("-m", "mypy", *packages, "--cache-dir", tmp_path / "cache")
    errors = [line for line in found.splitlines() if ": error: " in line]
    for addition, (path, _) in NAMES.items():
        own = [line for line in errors if f"'{addition}'" in line]
        errors = [line for line in errors if line not in own]
        files = {line.partition(":")[0] for line in own}
        assert files, found
        assert files | {path} <= files_for(addition), found
    assert not errors


@pytest.fixture(scope="module")
def greys(scratch: Scratch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of the source that was added."""
    shards = tmp_path_factory.mktemp("greys") / "shards"
    options = ("--num-images", 12, "--samples-per-shard", 5, "--workers", 1)
    scratch.python("-m", "data_prep", "shard", "greys", "--output", shards, *options)
    return shards


@pytest.mark.slow
def test_a_source_is_a_command_and_gives_shards(scratch: Scratch, greys: Path) -> None:
    assert "greys" in scratch.python("-m", "data_prep", "shard", "--help")
    assert "no damage" in scratch.python("-m", "data_prep", "verify", greys, "--full")
    assert "shades of grey" in scratch.python(
        "-c",
        "import sys; from pathlib import Path; from data_prep.shard_set.manifest import *\n"
        "print(read_manifest(Path(sys.argv[1])).title)",
        greys,
    )


@pytest.mark.slow
def test_a_statistic_is_in_the_manifest_and_may_lack_in_older_ones(
    scratch: Scratch, greys: Path
) -> None:
    assert json.loads((greys / "_info.json").read_bytes())["statistics"]["luma"] == 50
    assert "no damage" in scratch.python("-m", "data_prep", "verify", OLD / "shards" / RUN_SHARDS)


@pytest.mark.slow
def test_a_network_learns_by_an_optimizer_from_what_a_reader_reads(
    scratch: Scratch, greys: Path, tmp_path: Path
) -> None:
    """The reader gives what the tars give: the weights are the same, bit for bit."""
    for split in ("train", "val"):
        tars = sorted(greys.glob(f"{split}-*.tar"))
        (greys / f"{split}.joined").write_bytes(b"".join(path.read_bytes() for path in tars))
    names = ("--model.name", "tiny", "--optim.name", "rmsprop", "--epochs", 2)
    runs = {reader: tmp_path / reader for reader in ("tar", "joined")}
    for reader, run in runs.items():
        _train(scratch, greys, run, *names, "--data.reader", reader)
    by_tars, by_joined = map(_state, runs.values())
    assert "model.convolution.weight" in dict(states.tensors_of(by_tars))
    assert states.sha256_of(by_joined) == states.sha256_of(by_tars)


@pytest.mark.slow
def test_a_recipe_is_in_the_help(scratch: Scratch) -> None:
    text = scratch.python("-m", "pipeline.train", "--help")
    assert "\n  cifar10_quick     `cifar10` for one epoch.\n" in text


@pytest.fixture(scope="module")
def resumed(scratch: Scratch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an older version that has gone on, for 6 steps."""
    run = unpack_run(OLD, tmp_path_factory.mktemp("resumed"))
    assert "num_samples" not in _state(run)["progress"]
    _train(scratch, OLD / "shards" / RUN_SHARDS, run, "--epochs", 22)
    return run


@pytest.mark.slow
def test_a_field_is_saved_in_the_checkpoint_and_may_lack_in_older_ones(resumed: Path) -> None:
    assert _state(resumed)["progress"]["num_samples"] == 6 * 8


@pytest.mark.slow
def test_metrics_come_out_of_a_run(resumed: Path) -> None:
    published = (resumed / "metrics" / "rank-00000.prom").read_text()
    assert 'train_micro_batches_total{local_rank="0",rank="0"} 6.0\n' in published
    assert "\nalexnet_left_seconds 0.0\n" in published


@pytest.mark.slow
def test_a_metric_must_be_documented(scratch: Scratch) -> None:
    """And a command does it."""
    page = "tests/pipeline/metrics/test_metrics.py::test_the_page_lists_every_metric"
    command = ("-m", "pytest", "-p", "no:cacheprovider", "-vv", page)
    assert "call: python -m pipeline.metrics.tables docs/metrics.md" in scratch.fail(*command)
    scratch.python("-m", "pipeline.metrics.tables", "docs/metrics.md")
    scratch.python(*command)
    table = (scratch.folder / "docs" / "metrics.md").read_text()
    for name in ("alexnet_train_micro_batches_total", "alexnet_left_seconds"):
        assert f"\n| `{name}` |" in table


@pytest.mark.slow
def test_an_alert_is_in_the_rules_and_a_panel_on_its_dashboard(
    scratch: Scratch, tmp_path: Path
) -> None:
    scratch.python("-m", "launch", "prometheus", "--run-root", tmp_path, "--dashboards", tmp_path)
    rules = tmp_path / "prometheus-rules.yml"
    assert "- alert: LossHigh\n" in rules.read_text()
    dashboard = json.loads((tmp_path / "alexnet-run.json").read_text())
    assert "Epoch" in [panel["title"] for panel in dashboard["panels"]]
    subprocess.run([require_tool("promtool"), "check", "rules", rules], check=True)


@pytest.mark.slow
def test_a_slurm_option_is_in_the_help_and_in_the_script(scratch: Scratch) -> None:
    assert "SLURM's reservation." in scratch.python("-m", "launch", "slurm", "train", "--help")
    assert "\n#SBATCH --reservation=morning\n" in _script(scratch, "--reservation", "morning")
    assert "reservation" not in _script(scratch)


@pytest.mark.slow
def test_a_kubernetes_option_is_in_the_help_and_in_the_job(scratch: Scratch) -> None:
    command = ("-m", "launch", "kubernetes", "train")
    assert "The pods' priority class." in scratch.python(*command, "--help")
    options = ("--container", "alexnet:1", "--claim", "data:/data", "--priority", "low")
    training = ("cifar10", "--data.shards", "/data/shards", "--run-dir", "/data/run")
    job = scratch.python(*command, *options, *training)
    assert '\n      priorityClassName: "low"\n' in job


@pytest.mark.slow
def test_a_follower_shows_a_run(scratch: Scratch, tmp_path: Path) -> None:
    run = unpack_run(OLD, tmp_path)
    scratch.python("-m", "launch", "follow", run, "--to", "csv", "--once")
    assert "\ntrain/loss,4," in (run / "numbers.csv").read_text()


@pytest.mark.slow
def test_an_exit_code_is_that_of_its_outcome(scratch: Scratch) -> None:
    code = 'from pipeline.run.ending import exit_code_of as code; exit(code("stuck"))'
    scratch.fail("-c", code, code=76)
    assert "exit 76" in _script(scratch)


def _script(scratch: Scratch, *options: object) -> str:
    training = ("cifar10", "--data.shards", "shards", "--run-dir", "run")
    return scratch.python("-m", "launch", "slurm", "train", "--dry-run", *options, *training)


def _train(scratch: Scratch, shards: Path, run: Path, *options: object) -> None:
    words = (*RUN, "--data.shards", shards, "--run-dir", run, *options)
    scratch.python("-m", "pipeline.train", *words)


def _state(run: Path) -> dict[str, Any]:
    return states.load(states.newest(run))
