"""What SLURM, or a person, did to a run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pipeline.explain.evidence import Evidence
from pipeline.explain.explanation import Cause, CauseKind
from pipeline.run.console import counted
from pipeline.run.ending import STOP_SIGNALS, StopSource
from pipeline.run.event_log import of_type
from pipeline.run.events import SignalEvent

_BY_SLURM: Sequence[tuple[CauseKind, str, str, str]] = (
    (
        *("out_of_memory", "OUT_OF_MEMORY", r"oom_kill event|OOM Killed"),
        "its memory ran out: SLURM reports that the kernel ended a process",
    ),
    ("time_limit", "TIMEOUT", r"DUE TO TIME LIMIT", "SLURM ended the job at its time limit"),
    ("preempted", "PREEMPTED", r"DUE TO PREEMPTION", "SLURM preempted the job"),
    ("lost_node", "NODE_FAIL", r"DUE TO NODE FAILURE", "SLURM lost a node of the job"),
    ("requeued", "REQUEUED", r"DUE TO JOB REQUEUE", "the job was put back into SLURM's queue"),
    (
        *("cancelled", "CANCELLED", r"JOB \d+ ON \S+ CANCELLED AT \S+ \*\*\*"),
        "the job was cancelled",
    ),
)
"""How SLURM ends a job: the job's state then, what it writes into the log, and a text."""

_ASKED: Mapping[StopSource, tuple[CauseKind, str]] = {
    StopSource.STOP_FILE: ("stop_asked", "a person asked for it by 'launch stop' or a file STOP"),
    StopSource.SIGINT: ("stop_asked", "a person asked for it by Ctrl-C"),
    StopSource.SIGUSR1: ("time_limit", "its time ran out"),
    StopSource.END_OF_LAUNCHER: ("lost_launcher", "torchrun or its launcher was gone"),
}
"""What the source of a stop request means by itself; the others may have been SLURM's."""


def by_slurm(seen: Evidence) -> Cause | None:
    """What SLURM did to the job of the last attempt, by its own word or by the log."""
    begin = seen.attempt[0].time if seen.attempt else 0.0
    is_its = seen.job is not None and (seen.job.started or begin) <= begin + 1
    state, log = seen.job.state if seen.job and is_its else "", "\n".join(seen.log)
    for kind, name, pattern, text in _BY_SLURM:
        if state == name or re.search(pattern, log):
            return Cause(kind=kind, text=text)
    return None


def why_stopped(seen: Evidence, num_preemptions: int) -> Cause:
    """Why a run has left as it was asked to."""
    signals = of_type(seen.attempt, SignalEvent)
    if not signals:
        return Cause(kind="max_steps", text="it did the steps that --max-steps asked for")
    source, cause = signals[-1].source, by_slurm(seen)
    name = source if source in {number.name for number in STOP_SIGNALS} else None
    asked = {str(known): meaning for known, meaning in _ASKED.items()}.get(source)
    if asked is not None:
        kind, text = asked
    elif cause is not None:
        kind, text = cause.kind, cause.text
    elif seen.job is not None and seen.job.state == "PENDING":
        kind, text = "requeued", "SLURM took its nodes, for another job or because a person said so"
    else:
        kind, text = "signal", "it was asked to"
    text += f" ({name})" if name else ""
    if num_preemptions > 1:
        text += f"; it was stopped {counted(num_preemptions, 'time')} by others than a person"
    return Cause(kind=kind, text=text, signal=name)


def never_began(seen: Evidence) -> list[Cause]:
    """What became of the job of a run that has left nothing."""
    job = seen.job
    if job is None:
        return []
    kind: CauseKind = "cancelled" if job.state == "CANCELLED" else "error"
    return [Cause(kind=kind, text=f"job {job.number} is {job.state}, and no rank has begun")]
