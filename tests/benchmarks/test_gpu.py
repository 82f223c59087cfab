"""The command for a GPU that is there for minutes: all of it on the CPU, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import machine
from benchmarks.gpu.parts import PARTS, Asked
from benchmarks.gpu.steps import SIDES
from tests.bare import bare_environment


def test_a_dry_run_does_all_of_it_where_only_torch_and_triton_are(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    words = ("--dry-run", "--minutes", "60", "--json", str(path))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *words],
        env=bare_environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(path.read_text())
    assert found["is_dry_run"]
    assert json.loads(done.stdout) == found
    parts = {name: part["figures"] for name, part in found["parts"].items()}
    assert {name: part["outcome"] for name, part in found["parts"].items()} == dict.fromkeys(
        PARTS, "done"
    ), found
    assert set(parts["tests"].values()) == {"passed"}
    assert parts["steps"]["fp32, batch 1"].keys() >= SIDES.keys()
    assert len(parts["kernels"]["groups"]) == 22
    assert parts["kernels"]["kernels"]
    assert parts["resident"]["ratio of the medians"] > 0
    assert parts["resident"]["images resident"] == 16
    assert len(parts["cifar10"]["top1_by_epoch"]) == 1
    assert "left out" in parts["feeding"]["tars of JPEGs"]
    assert parts["feeding"]["tars of planes"]["ratio"] > 0
    assert parts["feeding"]["planes staged from a URL"]["ratio"] > 0
    assert parts["ranks"].keys() == {
        *("one rank", "all-reduce", "two replicas", "one replica, a column on each")
    }


@pytest.mark.parametrize(
    ("cuda", "sentence"),
    [(None, "computes on CPUs alone"), ("13.0", "torch finds no GPU: call nvidia-smi")],
)
def test_without_a_gpu_it_names_the_way_that_works(
    cuda: str | None,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("pipeline.ranks.gpus._newest_cuda", lambda _: None)
    path = tmp_path / "gpu.json"
    assert command.main(["--json", str(path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line
    assert line.endswith("; --dry-run does all of this on the CPU, with tiny sizes")
    assert not path.exists()


def test_without_triton_it_names_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpu_fault", lambda: None)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert str(machine.fault()).endswith("is not installed: pip install triton")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--minutes", "0"), "--minutes is 0; expected more than 0"),
        (("--cifar10", "nowhere"), "--cifar10 nowhere: there is nothing of that name"),
    ],
)
def test_bad_options_are_refused(
    words: tuple[str, ...], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.options_of(["--json", str(tmp_path / "gpu.json"), *words])
    assert sentence in capsys.readouterr().err


def asked(folder: Path, cifar10: Path | None = None) -> Asked:
    return Asked(dry_run=True, cifar10=cifar10, images=None, folder=folder)


def test_a_part_is_ended_at_its_deadline_and_one_that_fails_costs_itself(tmp_path: Path) -> None:
    late = command.run_one("steps", asked(tmp_path), 0.0)
    assert late["outcome"] == "out of time"
    failed = command.run_one("cifar10", asked(tmp_path, cifar10=tmp_path), 3600)
    assert failed["outcome"] == "failed"
    assert str(tmp_path) in failed["why"]
    assert failed["log"]


def test_time_that_a_part_leaves_goes_to_those_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first part takes no time, the second all that there is."""
    limits: dict[str, float] = {}
    path, now = tmp_path / "gpu.json", [0.0]

    def run_one(name: str, _asked: Asked, limit: float) -> dict[str, Any]:
        assert json.loads(path.read_text())["parts"].keys() == PARTS.keys()
        limits[name] = limit
        now[0] += 1000 if name == "steps" else 0
        return {"outcome": "done"}

    monkeypatch.setattr(command, "run_one", run_one)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    figures: dict[str, Any] = {"parts": {name: {"outcome": "not started"} for name in PARTS}}
    wanted = ["tests", "steps", "kernels"]
    command.run_all(asked(tmp_path), wanted, 100.0, figures, path)
    weights = [PARTS[name].weight for name in wanted]
    assert limits == {
        "tests": pytest.approx(100 * weights[0] / sum(weights)),
        "steps": pytest.approx(100 * weights[1] / sum(weights[1:])),
    }
    outcomes = {name: part["outcome"] for name, part in figures["parts"].items()}
    assert outcomes == dict.fromkeys(PARTS, "left out") | {
        "tests": "done",
        "steps": "done",
        "kernels": "out of time",
    }
    assert json.loads(path.read_text()) == figures
