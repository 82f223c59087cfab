"""The scripts that sbatch gets: pure functions of a spec and a command.

Without a command a script takes it from the environment of whoever submits it by hand; those of
the default specs are `slurm/train.sbatch` and `slurm/prepare.sbatch`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from launch.spec import JobSpec, PrepareSpec, TrainSpec
from launch.templates import fill
from pipeline.config.timeouts import REQUEUE_PAUSES
from pipeline.run.ending import STOP_SIGNALS, ExitCode, signals_to_handle


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingCommand:
    """What a job is to train."""

    arguments: Sequence[str]
    """Those of `pipeline.train`."""
    run_dir: str
    """The run directory among them."""
    doctor_arguments: Sequence[str]
    """Those of `pipeline.doctor` for it."""


_RANKS_BY_GPUS = "${SLURM_GPUS_ON_NODE:?the job has no GPUs: give sbatch --gpus-per-node}"


def render_train(spec: TrainSpec, command: TrainingCommand | None = None) -> str:
    """A training job; without a command RECIPE, SHARDS and RUN name what to train."""
    doctor = ""
    if command is None:
        by_hand = (
            "; by hand:\n#     RECIPE=alexnet_fast SHARDS=shards RUN=runs/first sbatch [OPTIONS] "
            "slurm/train.sbatch [TRAINING OPTIONS]"
        )
        training = (
            "for word; do\n"
            "    case $word in --run-dir* | --data.shards*)\n"
            '        echo "error: $word: give RUN=… and SHARDS=… before sbatch"; exit 2 ;;\n'
            "    esac\n"
            "done\n"
            "run=${RUN:-runs/$SLURM_JOB_NAME}\n"
            'training=("${RECIPE:-alexnet_2012}" --data.shards "${SHARDS:-shards}" '
            '--run-dir "$run" "$@")'
        )
    else:
        by_hand = "."
        run, arguments = shlex.quote(command.run_dir), shlex.join(command.arguments)
        training = f"run={run}\ntraining=({arguments})"
        if spec.doctor:
            words = shlex.join(command.doctor_arguments)
            doctor = (
                f'attend "${{torchrun[@]}}" -m pipeline.doctor {words}\n'
                f'[ "$code" -eq 0 ] || [ -n "$asked$is_cancelled" ] || exit {ExitCode.FAILED}\n'
            )
    ranks = spec.ranks_per_node
    return fill(
        "train.sbatch.in",
        directives=_directives(spec),
        by_hand=by_hand,
        training=training,
        environment=_environment(spec, is_by_hand=command is None),
        doctor=doctor,
        ranks=_RANKS_BY_GPUS if ranks is None else str(ranks),
        signals=signals_to_handle(STOP_SIGNALS),
        done=str(ExitCode.DONE),
        stopped=str(ExitCode.STOPPED),
        failed=str(ExitCode.FAILED),
        shutdown_seconds=str(spec.shutdown_seconds),
        requeue_pauses=" ".join(map(str, REQUEUE_PAUSES)),
        max_restarts=str(spec.max_restarts),
        max_requeues=str(spec.max_requeues if spec.requeue else 0),
    )


def render_prepare(spec: PrepareSpec, arguments: Sequence[str] | None = None) -> str:
    """A conversion; `arguments` are those of `data_prep shard`, without them SOURCE, INPUT, SHARDS
    name what to convert."""
    if arguments is None:
        by_hand = (
            "; by hand:\n#     SOURCE=imagenet INPUT=ilsvrc2012 SHARDS=shards sbatch [OPTIONS] "
            "slurm/prepare.sbatch [SHARDING OPTIONS]"
        )
        conversion = (
            'conversion=("${SOURCE:-imagenet}" --input "${INPUT:-ilsvrc2012}" '
            '--output "${SHARDS:-shards}" "$@")'
        )
    else:
        by_hand = "."
        conversion = f"conversion=({shlex.join(arguments)})"
    return fill(
        "prepare.sbatch.in",
        directives=_directives(spec),
        by_hand=by_hand,
        conversion=conversion,
        environment=_environment(spec, is_by_hand=arguments is None),
    )


def render_merge(spec: JobSpec, shards: str) -> str:
    """The job that publishes the shard set at `shards` once all parts are there."""
    return fill(
        "merge.sbatch.in",
        directives=_directives(spec),
        shards=shlex.quote(shards),
        environment=_environment(spec, is_by_hand=False),
    )


def _directives(spec: JobSpec) -> str:
    return "\n".join(f"#SBATCH {option}" for option in spec.directives())


def _environment(spec: JobSpec, *, is_by_hand: bool) -> str:
    """What runs Python: arrays `python`, `container` (options of srun) and `aside` (for this host),
    with the environment of the script.

    pyxis gives srun's tasks the container, so that a command for this host alone needs srun too.
    """
    python, container, aside = shlex.quote(spec.interpreter), "", ""
    if is_by_hand:
        python = f'"${{PYTHON:-{spec.interpreter}}}"'
    if spec.container is not None:
        image, mounts = (
            shlex.quote(text or "") for text in (spec.container, spec.container_mounts)
        )
        if spec.is_in_pyxis:
            more = f",{mounts}" if spec.container_mounts else ""
            container = (
                f'--container-image={image} --container-mounts="$PWD"{more} '
                '--container-workdir="$PWD"'
            )
            aside = f"srun --nodes=1 --ntasks=1 {container}"
        else:
            bind = f"--bind {mounts} " if spec.container_mounts else ""
            python = f"apptainer exec --nv {bind}{image} {python}"
    return (
        "export SLURM_EXPORT_ENV=ALL # else tasks get only what an --export of sbatch says\n"
        f"python=({python}) container=({container}) aside=({aside})"
    )
