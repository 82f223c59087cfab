"""What a job asks for, checked before anything is submitted: everywhere, and of SLURM."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from data_prep.shard_set.fields import Limit, Reads, check_fields, fields_of, within, wrong
from data_prep.shard_set.files import expanded
from data_prep.shard_set.options import Named, NotAnOption, option_of
from pipeline.config import timeouts


def _expanded_each(text: str) -> str:
    return ",".join(map(expanded, text.split(",")))


PathText = Annotated[str, Reads(_expanded_each)]
"""A path, or several with commas between them."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_WORD = re.compile(r"\S+")
_TIME = re.compile(r"(?:(\d{1,5})-)?(\d{1,7}(?::\d{1,2}){0,2})", re.ASCII)
_SHORTEST_LEAD_SECONDS = 2 * timeouts.margin_seconds(is_requeued=False)


def seconds_of(time_limit: str) -> int:
    """What SLURM takes it for; 0 if it is in none of sbatch's forms.

    0 is no limit to SLURM, and a job that has none is not asked to save before its end.
    """
    match = _TIME.fullmatch(time_limit)
    if match is None:
        return 0
    parts = [int(part) for part in match[2].split(":")]
    if any(part >= 60 for part in parts[1:]):
        return 0
    units = (3600, 60, 1) if match[1] or len(parts) == 3 else (60, 1)
    seconds = sum(part * unit for part, unit in zip(parts, units, strict=False))
    return int(match[1] or 0) * 86400 + seconds


_JOB_NAME = Limit("letters, digits, '.', '_' and '-', the first a letter or digit", _NAME.fullmatch)
_TIME_LIMIT = Limit(
    "MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS, DAYS-HOURS:MINUTES or "
    "DAYS-HOURS:MINUTES:SECONDS, such as 24:00:00",
    seconds_of,
)
_ONE_WORD = Limit("one word without spaces", _WORD.fullmatch)
_Word = Annotated[str, _ONE_WORD]
_Count = Annotated[int, within(1, 100_000)]
_CountOrNone = Annotated[int, within(0, 100_000)]


@dataclass(frozen=True, kw_only=True)
class AnyJob:
    """What the jobs of every kind ask for, wherever they run.

    This class and the next two have no slots, so that a spec may inherit from two of them.
    """

    job_name: Annotated[str, _JOB_NAME] = "alexnet"
    """The job's name."""
    cpus_per_task: _Count = 16
    """Cores of a node's one task: of all its ranks together."""
    python: Annotated[PathText | None, Limit("an interpreter", bool)] = None
    """The interpreter that has the project, on every node; if not given, python3 of the container,
    or else of .venv."""
    container: Annotated[PathText | None, _ONE_WORD] = None
    """An image that has it instead; in SLURM apptainer runs a .sif, pyxis (srun) any other."""

    def __post_init__(self) -> None:
        check_fields(self, lambda name: option_of(fields_of(type(self))[name]))

    @property
    def interpreter(self) -> str:
        return self.python or ("python3" if self.container else ".venv/bin/python")


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a training asks for, wherever it runs: one torchrun a node."""

    nodes: _Count = 1
    """Number of nodes."""
    gpus_per_node: _CountOrNone = 8
    """GPUs of a node; 0: train on CPUs."""
    ranks_per_node: _Count | None = None
    """Ranks of a node; if not given, one a GPU."""
    signal_lead_seconds: Annotated[int, Named("--signal-lead")] = timeouts.LEAD_SECONDS
    """How long before its end (in SLURM its time limit) a job is asked to save and leave, in
    seconds."""
    max_restarts: _CountOrNone = 3
    """How often torchrun starts the ranks again when one fails."""

    def check_training(self) -> None:
        """Raise `ValueError` for what no training could be."""
        if self.gpus_per_node == 0 and self.ranks_per_node is None:
            raise ValueError(
                "--gpus-per-node is 0, and --ranks-per-node is missing: give the number of ranks"
            )
        if self.signal_lead_seconds < _SHORTEST_LEAD_SECONDS:
            expected = f"at least {_SHORTEST_LEAD_SECONDS} seconds"
            raise wrong("--signal-lead", str(self.signal_lead_seconds), expected)

    @property
    def shutdown_seconds(self) -> int:
        """What torchrun gives its ranks, which save, before it kills them."""
        return timeouts.shutdown_seconds(self.signal_lead_seconds, is_requeued=False)


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What a conversion asks for, wherever it runs."""

    array_size: _Count = 16
    """Number of jobs that convert."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobSpec(AnyJob):
    """What SLURM's jobs of every kind ask for. Raises `ValueError` for what it could not mean."""

    time_limit: Annotated[str, Named("--time"), _TIME_LIMIT] = "24:00:00"
    """Its time limit: MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS,
    DAYS-HOURS:MINUTES or DAYS-HOURS:MINUTES:SECONDS."""
    partition: _Word | None = None
    """SLURM's partition."""
    account: _Word | None = None
    """SLURM's account."""
    container_mounts: Annotated[PathText | None, _ONE_WORD] = None
    """Folders that it sees beside the one you submit from, with commas between them."""
    output: Annotated[_Word, NotAnOption] = "%x-%j.log"
    """Where a job's output goes, in sbatch's notation."""
    sbatch_options: Annotated[tuple[str, ...], Named("--sbatch-option", "--NAME=VALUE")] = ()
    """A further option of sbatch; may be given again."""

    def __post_init__(self) -> None:
        AnyJob.__post_init__(self)
        if self.container_mounts is not None and self.container is None:
            raise wrong(
                "--container-mounts", f"'{self.container_mounts}'", "a --container beside it"
            )
        for option in self.sbatch_options:
            if not (option.startswith("--") and _WORD.fullmatch(option)):
                raise wrong("--sbatch-option", f"'{option}'", "an option such as --qos=high")

    @property
    def is_in_pyxis(self) -> bool:
        """Whether srun starts the container, not apptainer."""
        return self.container is not None and not self.container.endswith(".sif")

    def directives(self) -> list[str]:
        """The options of sbatch."""
        named = {"partition": self.partition, "account": self.account}
        return [
            f"--job-name={self.job_name}",
            *self._own_directives(),
            "--ntasks-per-node=1",
            f"--cpus-per-task={self.cpus_per_task}",
            f"--time={self.time_limit}",
            *(f"--{name}={value}" for name, value in named.items() if value is not None),
            f"--output={self.output}",
            "--open-mode=append",
            *self.sbatch_options,
        ]

    def _own_directives(self) -> list[str]:
        return ["--nodes=1", "--requeue"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSpec(JobSpec, Training):
    """A training in SLURM."""

    requeue: bool = True
    """Whether a job that ran out of time, or lost its node, is queued again."""
    max_requeues: _CountOrNone = 50
    """How often it is queued again at most."""
    doctor: bool = False
    """Check the nodes first."""

    def __post_init__(self) -> None:
        JobSpec.__post_init__(self)
        self.check_training()
        limit = seconds_of(self.time_limit)
        if self.signal_lead_seconds >= limit:
            expected = f"less than the time limit, which is {limit}"
            raise wrong("--signal-lead", str(self.signal_lead_seconds), expected)

    @property
    def shutdown_seconds(self) -> int:
        return timeouts.shutdown_seconds(self.signal_lead_seconds, is_requeued=self.requeue)

    def _own_directives(self) -> list[str]:
        return [
            f"--nodes={self.nodes}",
            *([f"--gpus-per-node={self.gpus_per_node}"] if self.gpus_per_node else []),
            f"--signal=B:USR1@{self.signal_lead_seconds}",
            "--requeue" if self.requeue else "--no-requeue",
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareSpec(JobSpec, Conversion):
    """An array of jobs that convert a data set together."""

    job_name: Annotated[str, _JOB_NAME] = "alexnet-prepare"
    """The jobs' name."""
    output: Annotated[_Word, NotAnOption] = "%x-%A_%a.log"
    """Where a job's output goes, in sbatch's notation."""

    def _own_directives(self) -> list[str]:
        return [f"--array=0-{self.array_size - 1}", *JobSpec._own_directives(self)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """Options of this command that are not for SLURM."""

    dry_run: bool = False
    """Print the scripts, submit nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preparation:
    """Options of `chain` for the jobs that prepare, where they differ from the training's."""

    prepare_time_limit: Annotated[str | None, Named("--prepare-time")] = None
    """Time limit of the jobs that prepare; if not given, that of the training."""
    prepare_partition: str | None = None
    """SLURM's partition for the jobs that prepare; if not given, that of the training."""
