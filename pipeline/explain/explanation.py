"""What there is to say about a run, and how it is said."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.metrics.outcomes import RunState
from pipeline.run.console import duration, utc

State = RunState | Literal["queued"]

CauseKind = Literal[
    "killed_rank", "out_of_memory", "gpu_out_of_memory", "hang", "lost_rank", "lost_node",
    "disk_full", "corrupt_samples", "fetch", "diverged", "replicas_differ", "error",
    "preempted", "requeued", "time_limit", "cancelled", "stop_asked", "signal", "max_steps",
    "lost_launcher", "queue", "refused", "silent_rank", "stall", "saves_fail", "straggler",
    "not_learning", "dead_exporter",
]  # fmt: skip

_WELL = "nothing is wrong with the run"

ADVICE: Mapping[CauseKind, str] = {
    "killed_rank": "find out who killed it: a person, a limit of the job, or the kernel ('dmesg')",
    "out_of_memory": "give the job more memory, or it needs less with fewer ranks a host or a "
    "smaller data.prefetch_batches",
    "gpu_out_of_memory": "raise accumulation_steps, so that a micro-batch is smaller",
    "hang": "read the stacks of the ranks in the run's folder 'hangs'; if the rank waited for a "
    "slow disk or server, raise distributed.timeout_seconds",
    "lost_rank": "look at the logs and the kernel's words ('dmesg') on each host",
    "lost_node": "see to that host, or leave it out",
    "disk_full": "free space there, or lower checkpoint.keep",
    "corrupt_samples": "find all damage with 'python -m data_prep verify SHARDS --full', and "
    "restore it from a copy",
    "fetch": "see that the server is there and has the whole file",
    "diverged": "lower optim.learning_rate or raise schedule.warmup_ratio in a fork (--fork-from)",
    "replicas_differ": "test the memory and the GPU of that host, or leave it out",
    "error": "mend what the error names",
    "preempted": _WELL,
    "requeued": _WELL,
    "time_limit": f"{_WELL}, if each start has the time to save a step",
    "cancelled": "submit it again if that was not meant",
    "stop_asked": _WELL,
    "signal": _WELL,
    "max_steps": "leave out --max-steps to do all steps",
    "lost_launcher": "find out what ended torchrun or the launcher on that host",
    "queue": "wait, or ask for less",
    "refused": "mend what the error names, and start it again",
    "silent_rank": "look at that process on its host; if it hangs, the watchdog ends the job",
    "stall": "look at what the ranks wait for: a disk, a server, a host or the network",
    "saves_fail": "mend that: the run fails if its last checkpoint cannot be saved",
    "straggler": "compare the hosts: other jobs, clock rates, disks, and the network between them",
    "not_learning": "try another learning rate, initialisation or seed",
    "dead_exporter": "training is not affected; start it again with 'python -m pipeline.exporter'",
}
"""What to do, by the kind of the first cause."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cause:
    """What came first; a field is None where it has no meaning or is not known."""

    kind: CauseKind
    text: str
    """Half a sentence."""
    rank: int | None = None
    host: str | None = None
    phase: str | None = None
    """The name of a `Phase` in lower case, or the label of one."""
    shard: str | None = None
    signal: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """What happened to a run; times are in Unix seconds."""

    state: State
    since: float | None
    """Of a run that has ended: when it was last heard of. None: not known."""
    cause: Cause | None
    lost_steps: int
    """Steps that were done and not saved, and have to be done again."""
    lost_seconds: float
    """How long that work took."""
    next: str
    details: Mapping[str, str]
    now: float

    @property
    def sentence(self) -> str:
        """All in one sentence."""
        text = str(self.state).capitalize()
        if self.since is not None:
            is_over = self.state in ("completed", "stopped", "failed", "was killed")
            text += f" {'at' if is_over else 'since'} {utc(self.since)} UTC"
            text += f" ({duration(max(0.0, self.now - self.since))}{' ago' if is_over else ''})"
        if self.cause is not None:
            text += f": {self.cause.text}"
        elif self.state in ("failed", "was killed"):
            text += ": the cause is not known"
        if self.lost_steps:
            are = "step is" if self.lost_steps == 1 else "steps are"
            text += f"; {self.lost_steps:,} {are} lost ({duration(self.lost_seconds)})"
        return f"{text}."

    def lines(self) -> list[str]:
        """The sentence, then what to do and the details."""
        rest = {"next": self.next, **self.details}
        return [self.sentence, *(f"{name:12} {value}" for name, value in rest.items())]

    def to_json(self) -> dict[str, Any]:
        return {"sentence": self.sentence} | dataclasses.asdict(self)
