"""Jobs in odd places: on a file system that refuses every chmod, as mounted buckets and CIFS do.

And with another umask, with python -OO, without standard output, home or folder for temporary
files, in a folder that takes no files.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.training import training
from tests.machine import skip
from tests.pipeline.monitoring import REPOSITORY


@pytest.fixture
def without_chmod(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system that refuses chmod and chown."""
    backing, path = tmp_path / "backing", tmp_path / "mounted"
    backing.mkdir()
    path.mkdir()
    try:
        subprocess.run(["bindfs", "--chmod-deny", "--chown-deny", backing, path], check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        skip(f"bindfs cannot be mounted (Debian: apt install bindfs; as root): {error}")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)  # the exporter may still leave


def run(module: str, *arguments: object) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    environment |= {"PYTHONPATH": str(REPOSITORY), "TMPDIR": "/nowhere", "LC_ALL": "C"}
    environment["SLURM_JOB_ID"] = "7"  # there an exporter leaves with its ranks
    done = subprocess.run(
        ["sh", "-c", '"$0" "$@" >&-', sys.executable, "-OO", "-m", module, *map(str, arguments)],
        cwd="/proc",
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        umask=0o077,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "ermission" not in done.stderr
    assert "permitted" not in done.stderr


def test_all_is_written_without_chmod_and_as_the_umask_says(without_chmod: Path) -> None:
    with pytest.raises(PermissionError):
        without_chmod.chmod(0o700)
    shards, runs = without_chmod / "shards", without_chmod / "runs"
    sizes = ("--num-train", 48, "--num-val", 20, "--workers", 1)
    run("data_prep", "shard", "synthetic", "--output", shards, *sizes)
    served = ("--metrics.exporter", "true")
    run("pipeline.train", *training(shards, runs / "first", "--epochs", 1, *served))
    run("pipeline.report", runs / "first")
    run("launch", "prometheus", "--run-root", runs)
    modes = {}
    for path in without_chmod.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # the exporter has taken it away
            modes[str(path.relative_to(without_chmod))] = path.stat().st_mode & 0o777
    found = set(modes)
    assert {
        "shards/_info.json",
        "shards/train-000000.tar",
        "runs/first/config.json",
        "runs/first/events.jsonl",
        "runs/first/predictions/val.npz",
        "runs/first/report.html",
        "runs/first/metrics/rank-00000.prom",
        "runs/prometheus.yml",
    } <= found
    assert any(name.startswith("runs/first/checkpoints/step-") for name in found)
    folders = {name for name in found if (without_chmod / name).is_dir()}
    assert {modes[name] for name in folders} == {0o700}
    assert {modes[name] for name in found - folders} == {0o600}
