"""What a SLURM job asks for, checked before anything is submitted."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

PathText = Annotated[str, "a path, or several with commas between them"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_WORD = re.compile(r"\S+")
_TIME = re.compile(r"(?:(\d{1,5})-)?(\d{1,7}(?::\d{1,2}){0,2})", re.ASCII)
_TIME_FORMS = (
    "MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS, DAYS-HOURS:MINUTES or "
    "DAYS-HOURS:MINUTES:SECONDS"
)
_MAX_COUNT = 100_000

_SHUTDOWN_MARGIN_SECONDS = 30


def _option(default: Any, text: str) -> Any:
    """A field; `text` is its help on the command line."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True, slots=True)
class JobSpec:
    """What the jobs of every kind ask for. Raises `ValueError` for what SLURM could not mean."""

    job_name: str = "alexnet"
    cpus_per_task: int = _option(16, "cores of a node's one task: of all its ranks together")
    time_limit: str = _option("24:00:00", _TIME_FORMS)
    partition: str | None = None
    account: str | None = None
    python: PathText | None = _option(
        None,
        "the interpreter that has the project, on every node; "
        "by default python3 of the container, or else of .venv",
    )
    container: PathText | None = _option(
        None, "an image that has it instead: apptainer runs a .sif, pyxis (srun) any other"
    )
    container_mounts: PathText | None = _option(
        None, "folders that it sees beside the one you submit from, with commas between them"
    )
    output: str = _option("%x-%j.log", "where a job's output goes, in sbatch's notation")
    sbatch_options: tuple[str, ...] = _option((), "a further option of sbatch; may be given again")

    def __post_init__(self) -> None:
        _require(bool(_NAME.fullmatch(self.job_name)), "--job-name", self.job_name, _A_NAME)
        _require_count("--cpus-per-task", self.cpus_per_task, lowest=1)
        seconds_of(self.time_limit)
        for name in ("partition", "account", "container", "container_mounts", "output"):
            value = getattr(self, name)
            is_word = value is None or bool(_WORD.fullmatch(value))
            _require(is_word, f"--{name.replace('_', '-')}", value, "one word without spaces")
        is_used = self.container is not None or self.container_mounts is None
        _require(is_used, "--container-mounts", self.container_mounts, "a --container beside it")
        _require(self.python != "", "--python", self.python, "an interpreter")
        for option in self.sbatch_options:
            is_option = option.startswith("--") and bool(_WORD.fullmatch(option))
            _require(is_option, "--sbatch-option", option, "an option such as --qos=high")

    @property
    def interpreter(self) -> str:
        return self.python or ("python3" if self.container else ".venv/bin/python")

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
class TrainSpec(JobSpec):
    """A training job: one torchrun a node."""

    nodes: int = 1
    gpus_per_node: int = _option(8, "0: train on CPUs")
    ranks_per_node: int | None = _option(None, "by default one a GPU")
    signal_lead_seconds: int = _option(
        300, "so long before its time limit a job is asked to save and leave"
    )
    requeue: bool = _option(
        True, "whether a job that ran out of time, or lost its node, is queued again"
    )
    max_requeues: int = _option(50, "how often at most")
    max_restarts: int = _option(3, "how often torchrun starts the ranks again when one fails")
    doctor: bool = _option(False, "whether the nodes are checked first")

    def __post_init__(self) -> None:
        JobSpec.__post_init__(self)
        _require_count("--nodes", self.nodes, lowest=1)
        _require_count("--gpus-per-node", self.gpus_per_node, lowest=0)
        if self.ranks_per_node is not None:
            _require_count("--ranks-per-node", self.ranks_per_node, lowest=1)
        elif self.gpus_per_node == 0:
            raise ValueError(
                "--gpus-per-node is 0, and --ranks-per-node is missing: give the number of ranks"
            )
        for name in ("max_requeues", "max_restarts"):
            _require_count(f"--{name.replace('_', '-')}", getattr(self, name), lowest=0)
        self._check_lead()

    def _check_lead(self) -> None:
        lowest, limit = 2 * _SHUTDOWN_MARGIN_SECONDS, seconds_of(self.time_limit)
        if not lowest <= self.signal_lead_seconds < limit:
            raise ValueError(
                f"--signal-lead is {self.signal_lead_seconds}; expected at least {lowest} seconds, "
                f"and less than the time limit, which is {limit}"
            )

    @property
    def shutdown_seconds(self) -> int:
        """What torchrun gives its ranks, which save, before it kills them."""
        return self.signal_lead_seconds - _SHUTDOWN_MARGIN_SECONDS

    def _own_directives(self) -> list[str]:
        return [
            f"--nodes={self.nodes}",
            *([f"--gpus-per-node={self.gpus_per_node}"] if self.gpus_per_node else []),
            f"--signal=B:USR1@{self.signal_lead_seconds}",
            "--requeue" if self.requeue else "--no-requeue",
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareSpec(JobSpec):
    """An array of jobs that convert a data set together."""

    job_name: str = "alexnet-prepare"
    output: str = _option("%x-%A_%a.log", "where a job's output goes, in sbatch's notation")
    array_size: int = _option(16, "the number of jobs that convert")

    def __post_init__(self) -> None:
        JobSpec.__post_init__(self)
        _require_count("--array-size", self.array_size, lowest=1)

    def _own_directives(self) -> list[str]:
        return [f"--array=0-{self.array_size - 1}", *JobSpec._own_directives(self)]


def spec_from(kind: type[Any], values: dict[str, Any]) -> Any:
    """A spec of the values given for its fields; None stands for the default."""
    names = {field.name for field in fields(kind)}
    return kind(
        **{name: value for name, value in values.items() if name in names and value is not None}
    )


def seconds_of(time_limit: str) -> int:
    """What SLURM takes it for; raises `ValueError` if it is in none of sbatch's forms, or 0.

    0 is no limit to SLURM, and a job that has none is not asked to save before its end.
    """
    match = _TIME.fullmatch(time_limit)
    if match:
        parts = [int(part) for part in match[2].split(":")]
        units = (3600, 60, 1) if match[1] or len(parts) == 3 else (60, 1)
        total = int(match[1] or 0) * 86400
        total += sum(part * unit for part, unit in zip(parts, units, strict=False))
        if total and all(part < 60 for part in parts[1:]):
            return total
    raise ValueError(f"--time is '{time_limit}'; expected {_TIME_FORMS}, such as 24:00:00")


_A_NAME = "letters, digits, '.', '_' and '-', the first a letter or digit"


def _require_count(name: str, value: int, *, lowest: int) -> None:
    _require(lowest <= value <= _MAX_COUNT, name, value, f"{lowest} to {_MAX_COUNT}")


def _require(is_right: bool, name: str, value: object, expected: str) -> None:
    if not is_right:
        raise ValueError(f"{name} is '{value}'; expected {expected}")
