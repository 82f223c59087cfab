"""`python -m launch slurm KIND …`: renders jobs, has SLURM check them, and submits them."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from data_prep.shard_set.files import as_text
from data_prep.shard_set.options import made, words_of
from data_prep.shard_set.streams import say
from launch.options import (
    add_kind,
    parse_sharding,
    paths_of,
    refuse_misplaced,
    refuse_script_options,
    warn_of_waits,
    without_tilde,
)
from launch.slurm import TrainingCommand, render_merge, render_prepare, render_train
from launch.spec import JobSpec, Preparation, PrepareSpec, Submission, TrainSpec, seconds_of
from pipeline.config.order import Surroundings
from pipeline.doctor.options import DoctorOptions
from pipeline.explain.slurm import kill_wait
from pipeline.metrics.addresses import check_reachable
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import write_submission
from pipeline.train.command import asks_for_help, help_text, parse_command

_TRAIN_LOG = "slurm-%j.log"


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """A script for sbatch."""

    title: str
    script: str
    logs: Path
    """The folder for its output, which SLURM does not make."""
    is_next: bool = False
    """Whether it waits for the one before it."""
    run: RunDirectory | None = None
    """That of a training."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    for name, plan, specs, command, text in (
        ("train", _plan_training, (TrainSpec,), "RECIPE …", "train a recipe"),
        ("prepare", _plan_conversion, (PrepareSpec,), "SOURCE …", "make a shard set by an array"),
        (
            *("chain", _plan_chain, (PrepareSpec, TrainSpec, Preparation)),
            *("SOURCE … -- RECIPE …", "prepare, then train on the result"),
        ),
    ):
        add_kind(kinds, name, command, text, (*specs, Submission), run=run, plan=plan)


def run(options: argparse.Namespace) -> None:
    """Raises `ValueError` before anything is submitted if a part of it cannot work."""
    refuse_misplaced(options.program, options.specs, options.command)
    jobs: list[Job] = options.plan(options, options.command)
    for line in "\n".join(job.script for job in jobs).splitlines():
        if as_text(line) != line:
            raise ValueError(f"{line!r} holds bytes that are no UTF-8: rename what it names")
    spec = made(JobSpec, vars(options))
    if spec.container is None and shutil.which(spec.interpreter) is None:
        sentence = (
            f"--python is {spec.interpreter}, which is no program on this host: give the "
            "interpreter that has the project here and on the nodes"
        )
        if not options.dry_run:
            raise ValueError(sentence)
        say(f"warning: {sentence}", stream=sys.stderr)
    if options.dry_run:
        sys.stdout.write("\n".join(job.script for job in jobs))
        return
    for job in jobs:
        _sbatch(job, "--test-only")
    submit(jobs)


def submit(jobs: Sequence[Job]) -> None:
    """Submit jobs in order and say their numbers; one that waits does so for the one before it."""
    last = ""
    for job in jobs:
        with job.run.being_made() if job.run else contextlib.nullcontext():
            job.logs.mkdir(parents=True, exist_ok=True)  # SLURM makes no folders
    for job in jobs:
        begin = time.time()
        waits = [f"--dependency=afterok:{last}", "--kill-on-invalid-dep=yes"] if job.is_next else []
        last = _sbatch(job, "--parsable", *waits).strip().partition(";")[0]
        if job.run:
            (job.logs / _TRAIN_LOG.replace("%j", last)).touch()
            write_submission(job.run.events, "slurm", last, begin)
        say(f"{job.title}: job {last}, log in {job.logs}")


def _sbatch(job: Job, *options: str) -> str:
    """What sbatch prints; raises `ValueError` if it refuses."""
    if shutil.which("sbatch") is None:
        raise FileNotFoundError(
            "sbatch is not installed here: call this where SLURM takes jobs, or with --dry-run"
        )
    environment = dict(os.environ)
    environment.pop("SLURM_RESTART_COUNT", None)  # of the job that this may be called in
    done = subprocess.run(
        ["sbatch", *options],  # noqa: S607 - of the user's PATH
        input=job.script,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ValueError(f"sbatch refuses the job '{job.title}': {done.stderr.strip()}")
    return done.stdout


def _plan_training(options: argparse.Namespace, arguments: list[str]) -> list[Job]:
    if asks_for_help(arguments):
        say(*help_text(arguments).splitlines())
        raise SystemExit(0)  # as the parsers of other options do
    command = parse_command(arguments)
    logs = command.run.logs
    output = f"{_as_pattern('--run-dir', logs)}/{_TRAIN_LOG}"
    if options.requeue is False and options.max_requeues is not None:
        raise ValueError("--max-requeues has no effect with --no-requeue: leave one of them out")
    spec = made(TrainSpec, vars(options) | {"output": output})
    metrics = command.config.metrics
    if metrics.enabled and metrics.exporter:
        check_reachable(metrics.exporter_address, spec.nodes)
    for option, path in paths_of(command).items():
        _check_is_mounted(spec, option, path)
    around = Surroundings(
        shutdown=spec.shutdown_seconds,
        grace=spec.signal_lead_seconds,
        kill_wait=kill_wait(),
        time_limit=seconds_of(spec.time_limit) or None,
        is_requeued=spec.requeue,
    )
    warn_of_waits(command, around)
    doctor = DoctorOptions(
        shards=command.config.data.shards,
        run_dir=command.run.path,
        decode_threads=command.config.data.decode_threads,
        device=command.config.distributed.device,
    )
    training = TrainingCommand(
        arguments=without_tilde(arguments),
        run_dir=str(command.run.path),
        doctor_arguments=words_of(doctor, DoctorOptions),
    )
    script = render_train(spec, training)
    return [Job(f"train {command.recipe}", script, logs, run=command.run)]


def _check_is_mounted(spec: JobSpec, option: str, path: Path) -> None:
    """Raise `ValueError` if pyxis would not mount `path`: what is written there is then lost."""
    if not spec.is_in_pyxis:  # apptainer says so itself
        return
    words = spec.container_mounts.split(",") if spec.container_mounts else []
    mounted = [Path.cwd(), *(Path(word.partition(":")[0]) for word in words)]
    for place in (path.absolute(), path.resolve()):
        if not any(place.is_relative_to(folder) for folder in mounted):
            folder = place.parent if len(place.parts) > 2 else place  # not the host's root
            raise ValueError(
                f"{option} is {path}, which the container does not see: "
                f"add --container-mounts {folder}"
            )


def _as_pattern(option: str, folder: Path) -> str:
    """The folder in sbatch's notation for file names; raises `ValueError` if it has none for it."""
    text = str(folder)
    if set(text) & set("\\'\"#") or text.split() != [text]:
        raise ValueError(
            f"the logs would be in '{folder}', and SLURM takes no path with spaces or one of "
            f"\\ ' \" # for them: give another {option}"
        )
    return text.replace("%", "%%")


def _plan_conversion(options: argparse.Namespace, arguments: list[str]) -> list[Job]:
    shards: Path = parse_sharding(["shard", *arguments]).shards
    arguments = without_tilde(arguments)
    refuse_script_options(arguments)
    if shards.name in ("", ".."):
        raise ValueError(
            f"--output is {shards}, which has no name: name the folder, since the logs go beside it"
        )
    logs = shards.with_name(f"{shards.name}-logs")
    pattern = _as_pattern("--output", logs)
    values = vars(options) | {"output": f"{pattern}/prepare-%a.log"}
    spec: PrepareSpec = made(PrepareSpec, values)
    _check_is_mounted(spec, "--output", shards)
    values |= {"job_name": f"{spec.job_name}-merge", "output": f"{pattern}/merge.log"}
    merging: JobSpec = made(JobSpec, values | {"cpus_per_task": 1})
    return [
        Job(f"prepare {arguments[0]}", render_prepare(spec, arguments), logs),
        Job("merge", render_merge(merging, str(shards)), logs, is_next=True),
    ]


def _plan_chain(options: argparse.Namespace, arguments: list[str]) -> list[Job]:
    if "--" not in arguments:
        raise ValueError("expected SOURCE, its options, --, RECIPE and its options")
    divide = arguments.index("--")
    sharding, training = arguments[:divide], arguments[divide + 1 :]
    shards = parse_sharding(["shard", *sharding]).shards
    if not any(word.partition("=")[0] == "--data.shards" for word in training):
        training += ["--data.shards", str(shards)]
    preparing = argparse.Namespace(**vars(options))
    preparing.time_limit = options.prepare_time_limit or options.time_limit
    preparing.partition = options.prepare_partition or options.partition
    if options.job_name:
        preparing.job_name = f"{options.job_name}-prepare"
    first, merging = _plan_conversion(preparing, sharding)
    (last,) = _plan_training(options, training)
    return [first, merging, dataclasses.replace(last, is_next=True)]
