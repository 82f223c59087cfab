"""The command for a GPU that is there for minutes: all of it on the CPU, and how it ends."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import machine, steps, training
from benchmarks.gpu.parts import PARTS, Asked, run_part
from benchmarks.gpu.results import Results
from benchmarks.gpu.scale import DRY_RUN
from benchmarks.gpu.steps import SIDES
from pipeline.config.kernel_compiler import compiler_fault
from pipeline.optim.precision import Arithmetic
from pipeline.run.event_log import append
from pipeline.run.events import TrainEvent
from tests.bare import bare_environment
from tests.pipeline import gpu_checks


def test_a_dry_run_does_all_of_it_where_only_torch_and_triton_are(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    words = ("--dry-run", "--minutes", "600", "--json", str(path))
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
    monkeypatch.setattr(machine, "compiler_fault", compiler_fault.__wrapped__)
    assert machine.fault() == "Triton is not installed (pip install triton)"


def test_a_gpu_without_bf16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpu_fault", lambda: None)
    monkeypatch.setattr(machine, "compiler_fault", lambda: None)
    monkeypatch.setattr(machine, "gpus", lambda: [torch.device("cuda", 0)])
    old = Arithmetic(host="n1", device="V100", native=("fp16", "fp32"), emulated=(), is_gpu=True)
    monkeypatch.setattr(machine, "arithmetic_of", lambda _: old)
    assert str(machine.fault()).startswith("V100 has no bf16")


def test_the_age_of_a_process_counts_its_imports() -> None:
    program = (
        "import time; time.sleep(0.3); begin = time.monotonic()\n"
        "from benchmarks.gpu import machine\n"
        "passed = time.monotonic() - begin; print(passed, machine.age())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    passed, age = map(float, done.stdout.split())
    assert age > passed + 0.2


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
    return Asked(dry_run=True, cifar10=cifar10, images=None, folder=folder, found=folder)


def never_end(*_: object) -> None:
    """Takes the place of a part, which a machine that stood still may find done at its deadline."""
    os.setsid()
    threading.Event().wait()


def test_a_part_is_ended_at_its_deadline_and_one_that_fails_costs_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(command, "run_part", never_end)
        late = command.run_one("steps", asked(tmp_path), 0.0)
    assert late["outcome"] == "out of time"
    failed = command.run_one("cifar10", asked(tmp_path, cifar10=tmp_path), 3600)
    assert failed["outcome"] == "failed"
    assert str(tmp_path) in failed["why"]
    assert failed["log"]


def test_what_only_a_gpu_can_do_is_checked_first_and_norms_last() -> None:
    names = list(gpu_checks.checks(torch.device("cuda")))
    assert names[: len(gpu_checks.ON_GPUS_ALONE)] == list(gpu_checks.ON_GPUS_ALONE)
    assert [name.startswith("response norm of") for name in names[-24:]] == [True] * 24
    assert names[-24:-22] == [
        "response norm of (96, 2, 55) in torch.bfloat16, relu_first=False",
        "response norm of (256, 2, 27) in torch.bfloat16, relu_first=True",
    ]


def run_checks(
    checks: Mapping[str, Callable[[], None]],
    one: Asked,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    monkeypatch.setattr(gpu_checks, "checks", lambda _: checks)
    monkeypatch.setattr(os, "setsid", lambda: None)
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    path = one.found / "tests.json"
    run_part("tests", one, path, one.found / "tests.log")
    return json.loads(path.read_text())


def fails(error: Exception) -> None:
    raise error


def test_a_check_that_lacks_a_package_or_a_tool_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = {
        "package": lambda: fails(ModuleNotFoundError("No module named 'x'")),
        "tool": lambda: fails(FileNotFoundError("nvidia-smi")),
        "sound": lambda: None,
    }
    figures = {
        "package": {"left out": "No module named 'x'"},
        "tool": {"left out": "nvidia-smi"},
        "sound": "passed",
    }
    found = run_checks(missing, asked(tmp_path), monkeypatch)
    assert found == {"outcome": "done", "figures": figures}
    wrong = {"wrong": lambda: fails(ValueError("one\n two"))} | missing
    found = run_checks(wrong, asked(tmp_path), monkeypatch)
    assert found["figures"] == {"wrong": {"failed": "ValueError: one two"}} | figures
    assert found["why"] == "AssertionError: 1 of 4 checks failed: wrong"


def test_checks_that_time_is_too_short_for_are_left_out_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def takes_long() -> None:
        now[0] += 10

    one = dataclasses.replace(asked(tmp_path), deadline=19.0)
    found = run_checks(dict.fromkeys("abc", takes_long), one, monkeypatch)
    over = {"left out": "the time of this part was over"}
    assert found["figures"] == {"a": "passed", "b": over, "c": over}
    assert found["outcome"] == "left out"
    assert found["why"].startswith("the last 2 of 3 checks")


def test_a_side_and_a_type_that_fail_cost_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rates(make_step: object, *_: object) -> list[float]:
        if make_step is SIDES["eager"]:
            raise RuntimeError("no engine")
        return [1.0, 2.0]

    monkeypatch.setattr(steps, "rates", rates)
    monkeypatch.setattr(steps, "matmul_flops_per_second", lambda *_: fails(ValueError("no type")))
    results = Results(tmp_path / "steps.json")
    with pytest.raises(RuntimeError, match="2 measurements failed: products in fp32"):
        steps.table(DRY_RUN, results)
    assert results.figures["matmul_tflops"] == {"fp32": {"failed": "ValueError: no type"}}
    row = results.figures["fp32, batch 1"]
    assert row["eager"] == {"failed": "RuntimeError: no engine"}
    assert row.keys() == SIDES.keys()
    assert row["torchvision, compiled"]["n"] == 2


def log_rates(run: Path, rates: Mapping[int, float]) -> None:
    run.mkdir()
    for step, rate in rates.items():
        event = TrainEvent(
            step=step,
            epoch=0.0,
            loss=1.0,
            top1=0.0,
            images_per_second=rate,
            data_wait_ratio=0.0,
            phase_seconds={},
            grad_norm=None,
            learning_rate=0.1,
            skipped_steps=0,
        )
        append(run / "events.jsonl", event)


def test_whole_log_intervals_count_and_the_first_warms_up(tmp_path: Path) -> None:
    log_rates(tmp_path / "resident", {20: 1.0, 40: 100.0, 60: 110.0, 64: 7.0})
    found = training.end_to_end(tmp_path, {training.READY: {"median": 210.0}})
    assert found["images_per_second, end to end"]["n"] == 2
    assert found["ratio of the medians"] == 0.5


def test_what_a_training_had_logged_when_its_part_was_ended_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "run_part", never_end)
    one = asked(tmp_path)
    late = command.run_one("resident", one, 0.0)
    assert late["figures"] == {}
    log_rates(tmp_path / "resident", {20: 1.0, 40: 100.0})
    Results(tmp_path / "resident.json").add(training.READY, {"median": 200.0})
    late = command.run_one("resident", one, 0.0)
    assert late["outcome"] == "out of time"
    assert late["figures"]["ratio of the medians"] == 0.5


def test_what_a_part_had_found_when_the_command_is_ended_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_one(name: str, one: Asked, _limit: float) -> dict[str, Any]:
        Results(one.found / f"{name}.json").add("rate", 5)
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("not reached: the signal is raised first")

    monkeypatch.setattr(command, "run_one", run_one)
    path = tmp_path / "gpu.json"
    before = signal.getsignal(signal.SIGTERM)
    try:
        code = command.main(["--dry-run", "--minutes", "1440", "--json", str(path)])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert code == 1
    parts = json.loads(path.read_text())["parts"]
    assert parts["tests"]["outcome"] == "out of time"
    assert parts["tests"]["figures"] == {"rate": 5}
    assert parts["steps"] == {"outcome": "not started"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["gpu.json"]


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
