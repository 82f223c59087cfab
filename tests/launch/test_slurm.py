"""The scripts: the committed ones are those of the default specs, and all are sound shell."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from launch.slurm import TrainingCommand, render_merge, render_prepare, render_train
from launch.spec import JobSpec, PrepareSpec, TrainSpec
from tests.machine import DEADLINE_SECONDS
from tests.pipeline.monitoring import REPOSITORY

HARD = 'it\'s a "run" of $HOME'
COMMAND = TrainingCommand(
    arguments=["cifar10", "--data.shards", "shards", "--run-dir", HARD],
    run_dir=HARD,
    doctor_arguments=["--shards", "shards", "--run-dir", HARD],
)


@pytest.mark.parametrize(
    ("name", "script"),
    [("train", render_train(TrainSpec())), ("prepare", render_prepare(PrepareSpec()))],
)
def test_the_committed_scripts_are_those_of_the_default_specs(name: str, script: str) -> None:
    path = REPOSITORY / "slurm" / f"{name}.sbatch"
    assert path.read_text() == script, f"write it anew: {script}"


def test_a_small_training() -> None:
    spec = TrainSpec(
        nodes=2,
        gpus_per_node=0,
        ranks_per_node=2,
        cpus_per_task=4,
        time_limit="1:00:00",
        partition="gpu",
        account="lab",
        signal_lead_seconds=120,
        requeue=True,
        max_requeues=3,
        max_restarts=1,
        doctor=True,
        python="/opt/my env/bin/python",
        output="logs/%j.log",
        sbatch_options=("--qos=high",),
    )
    expected = Path(__file__).with_name("train.golden.sbatch").read_text()
    assert render_train(spec, COMMAND) == expected


SCRIPTS = {
    "training": render_train(TrainSpec(), COMMAND),
    "training in pyxis": render_train(TrainSpec(container="nvcr.io#nvidia/pytorch:26.10"), COMMAND),
    "training in apptainer": render_train(TrainSpec(container="my_image.sif"), COMMAND),
    "conversion": render_prepare(PrepareSpec(), ["imagenet", "--input", HARD, "--output", HARD]),
    "merge": render_merge(JobSpec(), HARD),
}
each_script = pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)


@each_script
def test_bash_reads_every_script(script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert "@@" not in script


@each_script
def test_directives_come_first(script: str) -> None:
    """SLURM reads none behind the first command."""
    lines = script.splitlines()
    directives = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert directives == list(range(1, len(directives) + 1))


def test_a_command_keeps_its_words() -> None:
    assignments = [
        line for line in SCRIPTS["training"].splitlines() if line.startswith(("run=", "training="))
    ]
    show = 'printf "%s\\n" "$run" "${training[@]}"'
    done = subprocess.run(
        ["bash", "-c", "\n".join([*assignments, show])], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [HARD, *COMMAND.arguments]


@each_script
def test_tasks_get_the_whole_environment(script: str) -> None:
    """Also of a job that was submitted with `sbatch --export=NONE`."""
    assert script.index("\nexport SLURM_EXPORT_ENV=ALL") < script.index("srun ")


PROGRAMS = {
    "python": 'case "$*" in *outcome*) echo interrupted ;; *) exit 1 ;; esac',
    "srun": "exit 1",
    "scontrol": '[ "$1" = requeue ] || exit 0; echo "$2" >> "$0.log"; '
    '[ "$(wc -l < "$0.log")" -gt "$REFUSALS" ]',
    "sleep": "",
}
"""A SLURM whose controller refuses $REFUSALS requests, and a run that a signal has interrupted."""


def be_job(
    tmp_path: Path, *, arguments: Sequence[str] = (), **changes: str
) -> subprocess.CompletedProcess[str]:
    """Run the script of a training job without SLURM; `changes` are of programs and variables."""
    for name, body in PROGRAMS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{changes.pop(name, body)}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_NNODES": "1"}
    job |= {"SLURM_JOB_NAME": "alexnet", "SLURM_CPUS_PER_TASK": "1", "SLURM_GPUS_ON_NODE": "2"}
    job |= {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHON": "python"}
    job |= {"PYTHONPATH": str(REPOSITORY)} | changes
    return subprocess.run(
        ["bash", "-s", "--", *arguments],
        input=render_train(TrainSpec()),
        env={name: value for name, value in job.items() if value},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


@pytest.mark.parametrize("word", ["--run-dir", "--run-dir=r", "--data.shards"])
def test_by_hand_a_run_has_one_name(word: str, tmp_path: Path) -> None:
    """Else the script asks another run how it ended."""
    done = be_job(tmp_path, arguments=(word, "r"))
    assert done.returncode == 2
    assert done.stdout == f"error: {word}: give RUN=… and SHARDS=… before sbatch\n"


@pytest.mark.parametrize(("refusals", "is_queued"), [("0", True), ("2", True), ("99", False)])
def test_an_interrupted_job_is_queued_again_by_a_controller_that_starts_anew(
    refusals: str, is_queued: bool, tmp_path: Path
) -> None:
    done = be_job(tmp_path, REFUSALS=refusals)
    assert done.returncode == 75, done.stderr
    requests = (tmp_path / "scontrol.log").read_text().split()
    assert requests == ["7"] * (int(refusals) + 1 if is_queued else 4)
    assert ("error: SLURM does not queue job 7 again" in done.stdout) is not is_queued


def test_a_job_that_is_cancelled_in_the_meantime_is_not_queued_again(tmp_path: Path) -> None:
    done = be_job(tmp_path, sleep="kill -TERM $PPID", REFUSALS="1")
    assert done.returncode == 75, done.stderr
    assert (tmp_path / "scontrol.log").read_text().split() == ["7"]


@pytest.mark.parametrize(("name", "is_queued"), [("USR2", True), ("CONT", False)])
def test_a_job_whose_outcome_cannot_be_read_goes_on_if_it_was_asked_to_leave(
    name: str, is_queued: bool, tmp_path: Path
) -> None:
    done = be_job(tmp_path, python="exit 1", srun=f"kill -{name} $PPID; exit 1", REFUSALS="0")
    assert "runs/alexnet: unknown\n" in done.stdout
    assert done.returncode == (75 if is_queued else 1), done.stderr
    assert (tmp_path / "scontrol.log").exists() == is_queued


DEAF = """\
trap '' USR2; kill -USR2 $PPID
for _ in {1..2000}; do [ ! -e "$ALEXNET_ASKED" ] || break; /bin/sleep 0.05; done
shift; exec "$@"
"""
"""An srun that hears no signals while it starts, as SLURM's own does for some milliseconds.

What it becomes is deaf to this one too: the script may send it long after it wrote the file.
"""


def test_a_signal_that_srun_does_not_hear_reaches_the_ranks_when_they_start(tmp_path: Path) -> None:
    python = f'case "$*" in *outcome*) echo "$*" ;; *) exec {sys.executable} "$@" ;; esac'
    done = be_job(tmp_path, srun=DEAF, python=python, REFUSALS="0")
    assert "--code 75 --asked USR2" in done.stdout, done.stderr
    assert done.stderr == ""
    assert list((tmp_path / "runs/alexnet").iterdir()) == []


@pytest.mark.parametrize(("rows", "size"), [(None, 0), ("{}\n", 3)])
def test_what_is_in_the_events_when_a_job_begins_is_of_earlier_ones(
    rows: str | None, size: int, tmp_path: Path
) -> None:
    """Whatever its clock says: it may have been set back."""
    events = tmp_path / "runs/alexnet/events.jsonl"
    if rows is not None:
        events.parent.mkdir(parents=True)
        events.write_text(rows)
    done = be_job(tmp_path, python='case "$*" in *outcome*) echo "$*" ;; esac')
    assert f"outcome runs/alexnet --after {size} --code 1" in done.stdout
    assert done.stderr == ""


def test_a_request_of_a_start_that_was_killed_is_not_for_the_next(tmp_path: Path) -> None:
    (tmp_path / "runs/alexnet").mkdir(parents=True)
    (tmp_path / "runs/alexnet/.asked-7").touch()
    done = be_job(tmp_path, srun='[ ! -e "$ALEXNET_ASKED" ] && echo new', REFUSALS="0")
    assert "new" in done.stdout, done.stderr


def test_a_job_by_hand_without_gpus_says_what_to_do(tmp_path: Path) -> None:
    done = be_job(tmp_path, SLURM_GPUS_ON_NODE="")
    assert done.returncode
    assert "give sbatch --gpus-per-node" in done.stderr


def test_containers_run_python() -> None:
    pyxis = SCRIPTS["training in pyxis"]
    assert "python=(python3) container=(--container-image='nvcr.io#nvidia/pytorch:26.10' " in pyxis
    assert "aside=(srun --nodes=1 --ntasks=1 --container-image=" in pyxis
    apptainer = "python=(apptainer exec --nv my_image.sif python3) container=() aside=()"
    assert apptainer in SCRIPTS["training in apptainer"]
    spec = TrainSpec(container="my_image.sif", container_mounts="/data,/scratch:/tmp")
    apptainer = "python=(apptainer exec --nv --bind /data,/scratch:/tmp my_image.sif python3) "
    assert apptainer in render_train(spec, COMMAND)
