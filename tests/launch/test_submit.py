"""Jobs are planned whole, and refused before anything is submitted."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from launch.__main__ import main
from pipeline.config.data import LOCATION
from pipeline.config.schema import FIELDS
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import append, read_rows, write_submission
from pipeline.run.events import SubmitEvent
from tests.pipeline.fake_run import event, start_fields

CPU = ("--gpus-per-node", 0, "--ranks-per-node", 2)


def slurm(*words: object) -> int:
    return main(["slurm", *map(str, words)])


def test_a_dry_run_prints_what_a_chain_would_submit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = ("--dry-run", "--array-size", 4, "--nodes", 2, *CPU, "--partition", "gpu")
    preparing = ("--prepare-partition", "cpu", "--prepare-time", "2:00:00", "--job-name", "first")
    source = ("synthetic", "--output", tmp_path / "shards")
    training = ("cifar10", "--run-dir", tmp_path / "run")
    assert slurm("chain", *spec, *preparing, *source, "--", *training) == 0
    scripts = capsys.readouterr().out.split("#!/bin/bash\n")[1:]
    names = [re.findall(r"--job-name=(\S+)", script)[0] for script in scripts]
    assert names == ["first-prepare", "first-prepare-merge", "first"]
    partitions = [re.findall(r"--partition=(\S+)", script)[0] for script in scripts]
    assert partitions == ["cpu", "cpu", "gpu"]
    assert [re.findall(r"--time=(\S+)", script)[0] for script in scripts] == [
        *("2:00:00", "2:00:00", "24:00:00")
    ]
    assert f"--data.shards {tmp_path}/shards)" in scripts[2], "it trains on what was prepared"
    assert list(tmp_path.iterdir()) == []


def test_scripts_hold_the_home_directory_of_this_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a node, or in a container, `~` may be another one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    spec = ("--dry-run", "--python=~/venv/bin/python", *CPU)
    source = ("folder", "--input=~/images", "--output", "~/shards")
    assert slurm("chain", *spec, *source, "--", "cifar10", "--run-dir=~/run") == 0
    text = capsys.readouterr().out
    assert "~" not in text
    for words in (
        f"--input={tmp_path}/images --output {tmp_path}/shards)",
        f"shards={tmp_path}/shards",
        f"cifar10 --run-dir={tmp_path}/run --data.shards {tmp_path}/shards)",
        f"#SBATCH --output={tmp_path}/run/logs/",
        f"python=({tmp_path}/venv/bin/python)",
    ):
        assert words in text


def test_no_path_of_training_keeps_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    local = [name for name, field in FIELDS.items() if LOCATION in field.marks]
    local.remove("data.cache_dir")
    local.remove("init.weights")
    assert len(local) > 4
    for names, values in (
        (local, ("--data.reader=beton",)),
        (["data.cache_dir"], ("--data.reader=remote", "--data.shards=http://h/s")),
    ):
        words = [f"--{name}=~/{name}" for name in names]
        for source in ("~/old", "~/old@best", "~/me@home"):
            fork = ("--fork-from", source, "--run-dir=~/run")
            assert slurm("train", "--dry-run", *CPU, "cifar10", *words, *values, *fork) == 0
            text = capsys.readouterr().out
            assert "~" not in text
            assert f"--fork-from {tmp_path}{source[1:]} --run-dir={tmp_path}/run" in text
            assert all(f"--{name}={tmp_path}/{name} " in text for name in names)
    begin = ("cifar10", "--init=~/old@best", "--run-dir", "~/run", "--data.shards", "~/shards")
    assert slurm("train", "--dry-run", *CPU, *begin) == 0
    assert (
        f"(cifar10 --init={tmp_path}/old@best --run-dir {tmp_path}/run " in capsys.readouterr().out
    )


RUN = ("cifar10", "--run-dir", "r", "--data.shards", "s")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("train", "cifar10"), "--run-dir is missing"),
        (("train", "no-such", "--run-dir", "r", "--data.shards", "s"), "no-such"),
        (("train", "cifar10", "--run-dir", "r", "--data.shards", "s", "--epochs", "x"), "--epochs"),
        (
            (
                "train",
                "--no-requeue",
                "--max-requeues",
                50,
                "cifar10",
                "--run-dir=r",
                "--data.shards=s",
            ),
            "--max-requeues has no effect with --no-requeue",
        ),
        (
            ("train", "--nodes", 2, *RUN, "--metrics.exporter_address", "127.0.0.1"),
            "metrics.exporter_address is 127.0.0.1 in a job of 2 nodes",
        ),
        (("prepare", "synthetic", "--output", "s", "--task=3"), "--task=3 is for the script"),
        (
            ("train", "cifar10", "--nodes", 4, "--run-dir", "r", "--data.shards", "s"),
            "--nodes is an option of the launcher, and comes before cifar10: "
            "python -m launch slurm train --nodes … cifar10 …",
        ),
        (
            ("chain", "synthetic", "--output", "s", "--", "cifar10", "--run-dir=r", "--no-requeue"),
            "--no-requeue is an option of the launcher, and comes before synthetic",
        ),
        (("prepare", "synthetic", "--output", "s", "--array_size=4"), "before synthetic"),
        (("chain", "synthetic", "--output", "s"), "expected SOURCE, its options, --, RECIPE"),
        (("train", "cifar10", "--run-dir", "a b", "--data.shards", "s"), "give another --run-dir"),
        (("prepare", "synthetic", "--output", "it's"), "give another --output"),
        (("prepare", "synthetic", "--output", "."), "--output is ., which has no name"),
        (("prepare", "--python", "no/such", "synthetic", "--output", "s"), "--python is no/such"),
    ],
)
def test_a_command_that_cannot_work_is_refused(
    words: tuple[object, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert slurm(*words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert sentence in error


def test_a_number_that_cannot_be_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        slurm("train", "--nodes", 0, *RUN)
    assert "error: --nodes is 0; expected 1 to 100000" in capsys.readouterr().err


PYXIS = ("--dry-run", "--container", "nvcr.io#nvidia/pytorch:26.10")


def test_what_a_container_would_lose_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run directory that pyxis does not mount is gone when the job ends."""
    here, disk = tmp_path / "here", tmp_path / "disk"
    here.mkdir()
    disk.mkdir()
    (here / "runs").symlink_to(disk)
    monkeypatch.chdir(here)
    for outside in (disk / "run", Path("runs/run")):
        training = ("cifar10", "--data.shards", "shards", "--run-dir", outside)
        assert slurm("train", *PYXIS, *training) == 1
        assert f"--run-dir is {outside}" in (error := capsys.readouterr().err)
        assert error.endswith(f"does not see: add --container-mounts {disk}\n")
        assert slurm("train", *PYXIS, "--container-mounts", f"/data,{disk}", *training) == 0
        assert f'--container-mounts="$PWD",/data,{disk} ' in capsys.readouterr().out
        assert slurm("train", "--dry-run", "--container", "image.sif", *training) == 0
        capsys.readouterr()
    for words, sentence in (
        (("train", *PYXIS, "cifar10", "--data.shards", "/s", "--run-dir", "r"), "--data.shards is"),
        (("prepare", *PYXIS, "synthetic", "--output", disk / "shards"), "--output is"),
        (
            ("train", *PYXIS, "cifar10", "--data.shards=s", "--run-dir=r", f"--fork-from={disk}@7"),
            f"--fork-from is {disk}, which the container does not see",
        ),
        (
            ("train", *PYXIS, *RUN, f"--init={disk}/old@best"),
            f"--init is {disk}/old@best, which the",
        ),
    ):
        assert slurm(*words) == 1
        assert sentence in capsys.readouterr().err
    remote = ("--data.shards", "https://h/s", "--data.reader", "remote", "--data.cache_dir", "/tmp")
    assert slurm("train", *PYXIS, "cifar10", *remote, "--run-dir", "r") == 0


def test_a_conversion_that_cannot_work_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        slurm("prepare", "imagenet", "--output", "s", "--size", "many")
    assert "--size" in capsys.readouterr().err


def test_without_slurm_only_a_dry_run_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    command = ("cifar10", "--run-dir", tmp_path / "run", "--data.shards", "s")
    assert slurm("train", *CPU, *command) == 1
    assert "sbatch is not installed here" in capsys.readouterr().err
    assert slurm("train", "--dry-run", "--python", "no/such", *CPU, *command) == 0
    assert "warning: --python is no/such, which is no program" in capsys.readouterr().err


def test_a_job_that_submits_another_does_not_pass_its_own_restarts_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sbatch").write_text(
        f'#!/bin/bash\necho "${{SLURM_RESTART_COUNT-none}}" >> {tmp_path}/counts; echo 7'
    )
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    command = ("cifar10", "--run-dir", tmp_path / "run", "--data.shards", "s")
    assert slurm("train", *CPU, *command) == 0
    assert (tmp_path / "counts").read_text().split() == ["none", "none"]


def test_a_training_that_waits_is_said_to_be_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its events alone; also after an attempt, until the next one begins."""
    (tmp_path / "sbatch").write_text("#!/bin/bash\necho 7\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    run = RunDirectory(tmp_path / "run")
    begin = time.time()
    assert slurm("train", *CPU, "cifar10", "--run-dir", run.path, "--data.shards", "s") == 0
    (row,) = read_rows(run.events)
    assert isinstance(row, SubmitEvent)
    assert (row.to, row.job, row.step) == ("slurm", "7", 0)
    assert begin <= row.time <= time.time()

    def status() -> dict[str, str]:
        capsys.readouterr()
        assert main(["status", str(run.path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        return {line[:12].strip(): line[13:] for line in lines}

    assert status()["state"] == "queued"
    assert status()["time"].endswith(" in 0 attempts, waiting in a queue 100.0%")
    append(run.events, event("run", 0, time.time(), **start_fields()))
    assert status()["state"] != "queued"
    append(run.events, event("end", 5, time.time(), outcome="stopped"))
    assert status()["state"] == "stopped"
    write_submission(run.events, "slurm", "8", time.time())
    assert status()["state"] == "queued"
    assert list(read_rows(run.events))[-1].step == 5


def test_nothing_is_submitted_for_a_folder_of_other_things(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its events would make it look like a run's."""
    script = '#!/bin/bash\n[ "$1" = --test-only ] || touch "$0.called"; echo 7\n'
    (tmp_path / "sbatch").write_text(script)
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter-1.txt").touch()
    command = ("cifar10", "--run-dir", tmp_path / "thesis", "--data.shards", "s")
    assert slurm("train", *CPU, *command) == 1
    assert "is no run directory, and holds chapter-1.txt" in capsys.readouterr().err
    assert not (tmp_path / "sbatch.called").exists()
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter-1.txt"]
