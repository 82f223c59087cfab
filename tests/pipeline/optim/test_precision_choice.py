"""Which precision `auto` is: what devices compute natively, decided on for all ranks together."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from pipeline.config.recipes import RECIPES
from pipeline.config.schema import Config, Precision
from pipeline.optim.precision import Arithmetic, arithmetic_of, emulation, fastest, resolve
from pipeline.run.directory import RunDirectory
from tests.integration.training import make_shards, rows, training
from tests.pipeline.monitoring import REPOSITORY
from tests.pipeline.rank_jobs import Job

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
"""What makes torch compute as on a processor without AVX-512."""

needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="limits are those of x86")

BF16_CPU = Arithmetic(host="n1", device="avx512, bf16", native=("bf16", "fp32"), emulated=("fp16",))
PLAIN_CPU = Arithmetic(host="n2", device="avx2", native=("fp32",), emulated=("bf16", "fp16"))
AMPERE = Arithmetic(host="n3", device="A100", native=("bf16", "fp16", "fp32"), emulated=())
VOLTA = Arithmetic(host="n4", device="V100", native=("fp16", "fp32"), emulated=())


@pytest.mark.parametrize(
    ("devices", "precision"),
    [
        ([BF16_CPU, BF16_CPU], "bf16"),
        ([BF16_CPU, PLAIN_CPU], "fp32"),
        ([PLAIN_CPU, BF16_CPU], "fp32"),
        ([PLAIN_CPU], "fp32"),
        ([AMPERE, AMPERE], "bf16"),
        ([AMPERE, VOLTA], "fp16"),
        ([VOLTA, AMPERE], "fp16"),
        ([VOLTA], "fp16"),
    ],
)
def test_auto_is_the_fastest_that_all_have(devices: list[Arithmetic], precision: str) -> None:
    config = Config(precision="auto")
    assert fastest(devices) == precision
    assert resolve(config, None, devices).resolved_precision == precision


def test_a_run_keeps_its_precision_and_an_explicit_one_stays() -> None:
    assert resolve(Config(precision="auto"), "bf16", [PLAIN_CPU]).precision == "bf16"
    assert resolve(Config(precision="auto"), "fp32", [BF16_CPU]).precision == "fp32"
    assert resolve(Config(precision="bf16"), "fp32", [PLAIN_CPU]).precision == "bf16"
    with pytest.raises(RuntimeError, match="the precision is auto"):
        Config(precision="auto").resolved_precision  # noqa: B018


def test_recipes_that_want_speed_leave_the_choice() -> None:
    assert {name for name, recipe in RECIPES.items() if recipe().precision == "auto"} == {
        *("alexnet_fast", "cifar10", "finetune")
    }


@pytest.mark.parametrize(
    ("precision", "hosts", "factor"),
    [("bf16", "n2", "23 times"), ("fp16", "n1, n2", "13 to 15 times")],
)
def test_emulation_is_reported_with_what_it_costs(
    precision: Precision, hosts: str, factor: str
) -> None:
    reported = emulation(precision, [BF16_CPU, PLAIN_CPU, PLAIN_CPU])
    assert reported is not None
    assert reported.startswith(f"{precision} is emulated on {hosts}: ")
    assert factor in reported
    assert emulation("bf16", [BF16_CPU]) is emulation("fp32", [PLAIN_CPU]) is None


def test_a_gpu_that_only_emulates_bf16_is_told_to_use_fp16() -> None:
    """torch's own question says yes of old GPUs, which take bf16 apart into fp32."""

    def is_supported(including_emulation: bool = True) -> bool:
        return including_emulation

    with (
        mock.patch.object(torch.cuda, "is_bf16_supported", is_supported),
        mock.patch.object(torch.cuda, "get_device_name", return_value="Tesla V100"),
    ):
        old = arithmetic_of(torch.device("cuda"))
    with pytest.raises(
        ValueError, match=r"^Tesla V100 cannot compute in bf16: use --precision fp16$"
    ):
        resolve(Config(precision="bf16"), None, [AMPERE, old])
    with pytest.raises(ValueError, match="--precision fp16 with another --run-dir"):
        resolve(Config(precision="auto"), "bf16", [old])
    assert fastest([old]) == "fp16"


LOOK = """
import torch
from pipeline.optim.processor import has_bf16, instruction_sets
one = torch.ones(8, 32, 16, 16, dtype=torch.bfloat16)
torch.nn.functional.conv2d(one, one)
print(has_bf16(), instruction_sets(), sep="|")
"""


def look(**limits: str) -> tuple[bool, bool, str]:
    """Whether bf16 is native as oneDNN tells and as we do, and our name of the instruction sets."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        cwd=REPOSITORY,
        env=os.environ | limits | {"ONEDNN_VERBOSE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    *verbose, last = done.stdout.splitlines()
    reported = any("bfloat16 support" in line for line in verbose if ",info,cpu,isa:" in line)
    ours, _, name = last.partition("|")
    return reported, ours == "True", name


@pytest.mark.slow
@needs_x86
@pytest.mark.parametrize(
    "limits", [{}, AVX2, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}], ids=["none", "AVX2", "AVX-512"]
)
def test_native_is_what_onednn_calls_so(limits: dict[str, str]) -> None:
    reported, ours, name = look(**limits)
    assert ours == reported
    assert not (ours and limits)
    assert ("bf16" in name.split(" (")[0]) == ours
    assert all(f"{variable}={value}" in name for variable, value in limits.items())
    assert name.startswith("avx2") or limits != AVX2


def said_precisions(run: Path) -> set[str]:
    """In `config.json`, in all `run` events and in the metrics of rank 0."""
    config = json.loads((run / "config.json").read_text())["config"]
    events = [row["precision"] for row in rows(run, "run")]
    metrics = (RunDirectory(run).metrics / "rank-00000.prom").read_text()
    (info,) = (line for line in metrics.splitlines() if line.startswith("alexnet_run_info{"))
    reported = info.partition('precision="')[2].partition('"')[0]
    return {config["precision"], reported, *events}


def finish(shards: Path, run: Path, *options: object) -> str:
    """A job of two ranks, the second on a processor without bf16; what rank 0 says."""
    words = training(shards, run, *options)
    with Job(2, "pipeline.train", words, environment=AVX2) as job:
        assert job.wait() == [0, 0], job.errors
    return job.outputs[0]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("precision") / "shards")


@pytest.mark.slow
@needs_x86
def test_one_host_without_bf16_makes_all_fp32(shards: Path, tmp_path: Path) -> None:
    said = finish(shards, tmp_path, "--max-steps", 1)
    assert "2 on cpu, fp32" in said
    assert "emulated" not in said
    with Job(1, "pipeline.train", training(shards, tmp_path, "--max-steps", 2)) as job:
        assert job.wait() == [0], job.errors
    assert "1 on cpu, fp32" in job.outputs[0], "as it began, on whatever processor"
    assert said_precisions(tmp_path) == {"fp32"}


@pytest.mark.slow
@needs_x86
def test_bf16_where_it_is_emulated_is_one_warning_and_stays(shards: Path, tmp_path: Path) -> None:
    for options in (("--precision", "bf16", "--max-steps", 1), ("--max-steps", 2)):
        (reported,) = (
            line
            for line in finish(shards, tmp_path, *options).splitlines()
            if line.startswith("warning: ")
        )
        assert reported.startswith("warning: bf16 is emulated on ")
        assert "23 times (alexnet_fast) as long as in fp32 with AVX2" in reported
    assert said_precisions(tmp_path) == {"bf16"}
    with Job(1, "pipeline.train", training(shards, tmp_path, "--precision", "fp32")) as job:
        assert job.wait() == [1]
    assert "another configuration (precision: was bf16, is fp32)" in job.errors[0]
