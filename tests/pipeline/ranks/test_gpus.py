"""Hosts whose GPUs cannot be computed on, by a stand-in for the driver's library."""

from __future__ import annotations

import subprocess
from pathlib import Path
from unittest import mock

import pytest
import torch

from pipeline.config.schema import DistributedConfig
from pipeline.ranks import gpus
from pipeline.ranks.connect import connect
from pipeline.ranks.gpus import driver_fault, gpu_fault
from pipeline.ranks.launcher import LaunchEnvironment
from tests.pipeline.monitoring import require_tool


def driver(folder: Path, newest: int, result: int = 0) -> str:
    """The path of a library that knows CUDA up to `newest`, 1000 · major + 10 · minor."""
    source, library = folder / "driver.c", folder / "libcuda.so.1"
    body = f"*version = {newest}; return {result};"
    source.write_text(f"int cuDriverGetVersion(int *version) {{ {body} }}\n")
    command = [require_tool("cc"), "-shared", "-fPIC", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    return str(library)


@pytest.fixture
def torch_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build for CUDA 13.0 that finds no GPU."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("torch_for_cuda")
@pytest.mark.parametrize(("newest", "result", "is_old"), [
    (12020, 0, True),
    (13000, 0, False),
    (13010, 0, False),
    (12020, 3, False),  # it does not answer
])  # fmt: skip
def test_a_driver_older_than_torch_wants_is_named(
    tmp_path: Path, newest: int, result: int, is_old: bool
) -> None:
    fault = driver_fault(driver(tmp_path, newest, result))
    expected = (
        f"the NVIDIA driver knows CUDA up to 12.2, and torch {torch.__version__} wants 13.0: "
        "update the driver, or install a torch for CUDA 12.2"
    )
    assert fault == (expected if is_old else None)


@pytest.mark.usefixtures("torch_for_cuda")
def test_a_run_does_not_turn_to_the_cpu_because_of_an_old_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = driver_fault(driver(tmp_path, 11080))
    assert fault is not None
    monkeypatch.setattr("pipeline.ranks.connect.driver_fault", lambda: fault)
    with (
        pytest.raises(Exception, match=r"CUDA up to 11\.8.*, or use --distributed.device cpu"),
        connect(LaunchEnvironment(), DistributedConfig()),
    ):
        pass
    with connect(LaunchEnvironment(), DistributedConfig(device="cpu")) as world:
        assert world.device.type == "cpu"


@pytest.mark.usefixtures("torch_for_cuda")
def test_without_a_driver_there_is_no_gpu() -> None:
    assert driver_fault("libcuda-that-is-not-there.so") is None
    with mock.patch.object(gpus, "_newest_cuda", return_value=None):
        assert gpu_fault() == (
            "torch finds no GPU: call nvidia-smi, and look at CUDA_VISIBLE_DEVICES"
        )


def test_a_torch_for_cpus_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert gpu_fault() == (
        f"torch {torch.__version__} computes on CPUs alone: install torch for CUDA"
    )
