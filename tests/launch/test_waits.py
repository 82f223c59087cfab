"""A job whose waits contradict each other is refused before anything is started, or warned of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from launch.__main__ import main
from launch.doctor import Options, run
from pipeline.config.schema import Config, DistributedConfig
from pipeline.explain.slurm import kill_wait
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.run.directory import RunDirectory
from pipeline.run.lock import JobStart
from pipeline.train import prepare
from tests.integration.training import make_shards
from tests.pipeline.fake_run import (
    RunHistory,
    checkpoint_fields,
    make_images,
    start_fields,
    train_fields,
    write_config,
    write_shard_set,
)
from tests.pipeline.monitoring import REPOSITORY

CPU = ("--dry-run", "--gpus-per-node", 0, "--ranks-per-node", 2)
POD = ("--container", "image", "--claim", "runs:/runs", "--gpus-per-node", 0)


def has_saved(path: Path, seconds: float) -> RunDirectory:
    """A run that was stopped after a save which took so long."""
    directory = RunDirectory(path)
    path.mkdir(parents=True)
    history = RunHistory(directory)
    history.write("run", 0, **start_fields())
    history.write("train", 10, **train_fields(10))
    history.write("checkpoint", 10, **checkpoint_fields("preempt") | {"seconds": seconds})
    history.write("end", 10, outcome="stopped")
    history.close()
    return directory


def launch(*words: object) -> int:
    return main([*map(str, words)])


def training(directory: RunDirectory) -> tuple[object, ...]:
    return ("cifar10", "--data.shards", "/runs/shards", "--run-dir", directory.path)


def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n[ \"$*\" = 'show config' ] && printf '{text}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def test_slurm_s_kill_wait_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol(tmp_path, monkeypatch, "KeepAliveTime           = SYSTEM\\nKillWait  = 12 sec\\n")
    assert kill_wait() == 12
    monkeypatch.setenv("PATH", str(tmp_path))
    assert kill_wait() is None


def test_a_job_of_slurm_that_kills_a_save_is_refused_or_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scontrol(tmp_path, monkeypatch, "KillWait = 12 sec\\n")
    assert launch("slurm", "train", *CPU, *training(has_saved(tmp_path / "slow", 236))) == 1
    found = capsys.readouterr()
    assert found.out == ""
    assert "236 s (a save, measured" in found.err
    assert " = 236.6 s do not fit into 235 s (TORCH_ELASTIC_SHUTDOWN_TIMEOUT" in found.err
    assert launch("slurm", "train", *CPU, *training(has_saved(tmp_path / "fair", 20))) == 0
    found = capsys.readouterr()
    assert found.out.startswith("#!/bin/bash")
    assert found.err.startswith("warning: ")
    assert "do not fit into 12 s (KillWait of SLURM" in found.err
    assert launch("slurm", "train", *CPU, *training(has_saved(tmp_path / "fast", 2))) == 0
    assert "warning: 0." not in capsys.readouterr().err


def test_pods_whose_grace_period_is_shorter_than_a_save_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = has_saved(tmp_path / "slow", 100)
    claim = ("--claim", f"here:{tmp_path}")
    pods = ("kubernetes", "train", *POD, *claim, "--ranks-per-node", 2)
    assert launch(*pods, "--signal-lead", 120, *training(slow)) == 1
    found = capsys.readouterr()
    assert found.out == ""
    assert "100 s (a save, measured" in found.err
    assert "do not fit into 90 s" in found.err
    assert launch(*pods, "--signal-lead", 140, *training(slow)) == 0


def test_a_job_here_is_refused_before_it_leaves_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "50")
    slow = has_saved(tmp_path / "slow", 60)
    before = sorted(slow.path.iterdir())
    assert launch("local", "--nproc", 2, *training(slow)) == 1
    assert "do not fit into 50 s (TORCH_ELASTIC_SHUTDOWN_TIMEOUT" in capsys.readouterr().err
    assert sorted(slow.path.iterdir()) == before


def test_the_doctor_refuses_what_a_run_s_settings_contradict(tmp_path: Path) -> None:
    slow = has_saved(tmp_path / "slow", 2000)
    shards = tmp_path / "shards"
    labels = np.arange(2)
    write_shard_set(shards, make_images(labels), labels, ["a", "b"])
    write_config(slow, shards)
    with pytest.raises(ValueError, match=r"2000 s \(a save.* do not fit into 1800 s"):
        run(Options(run_dir=slow.path))


def test_the_doctor_asks_what_a_job_here_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "50")
    slow = has_saved(tmp_path / "slow", 60)
    with pytest.raises(ValueError, match=r"do not fit into 50 s \(TORCH_ELASTIC"):
        run(Options(run_dir=slow.path))


def test_a_job_that_is_started_again_is_only_warned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else one slow save would end it: nobody is there to give other options."""
    slow = has_saved(tmp_path / "slow", 60)
    config = Config(distributed=DistributedConfig(save_timeout_seconds=50))
    with pytest.raises(ValueError, match="do not fit into 50 s"):
        prepare._check_waits(config, slow, LaunchEnvironment())
    prepare._check_waits(config, slow, LaunchEnvironment(attempt=1))
    start = JobStart(job="7", number=1)
    prepare._check_waits(config, slow, LaunchEnvironment(start=start))
    assert capsys.readouterr().out.count("warning: 60 s (a save, measured") == 2


@pytest.mark.slow
def test_a_start_by_hand_is_refused_too(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards")
    slow = has_saved(tmp_path / "run", 60)
    command = [sys.executable, "-m", "pipeline.train", "cifar10", "--run-dir", str(slow.path)]
    command += ["--data.shards", str(shards), "--distributed.save_timeout_seconds", "50"]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: 60 s (a save, measured")
    assert "do not fit into 50 s (distributed.save_timeout_seconds" in done.stderr
