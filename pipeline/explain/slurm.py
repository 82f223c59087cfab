"""What SLURM knows of a run's last job, where it can be asked."""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.explain.system import said
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import of_type
from pipeline.run.events import Event, SubmitEvent

_ACCOUNT = ("JobID", "State", "Reason", "Submit", "Start", "End", "NodeList")

_NUMBER = re.compile("[0-9]{1,18}")

WAITS: Mapping[str, str] = {
    "Resources": "no free nodes",
    "Priority": "other jobs go first",
    "Dependency": "it waits for another job",
    "DependencyNeverSatisfied": "the job that it waits for has failed, so it never begins",
    "BeginTime": "its time to begin has not come",
    "JobHeldUser": "a person holds it: 'scontrol release' lets it go",
    "JobHeldAdmin": "an administrator holds it",
    "ReqNodeNotAvail": "the nodes that it needs are down or reserved",
    "PartitionTimeLimit": "it wants more time than its partition gives, so it never begins",
}
"""Why a job waits, by SLURM's word."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SlurmJob:
    """A job as SLURM has it; times are in Unix seconds, None where it does not say."""

    number: str
    state: str
    reason: str
    nodes: str
    submitted: float | None
    started: float | None
    ended: float | None

    @property
    def wait(self) -> str:
        """Why it is in the queue."""
        word = self.reason.partition(",")[0]
        text = WAITS.get(word)
        return f"{text} ({self.reason})" if text else self.reason or "SLURM does not say why"


def last_job(run: RunDirectory, rows: Iterable[Event]) -> str | None:
    """The number of the last job that was submitted for the run, by its events and its logs."""
    numbers = [path.stem.removeprefix("slurm-") for path in run.logs.glob("slurm-*.log")]
    numbers += [row.job or "" for row in of_type(rows, SubmitEvent) if row.to == "slurm"]
    return max(filter(_NUMBER.fullmatch, numbers), key=int, default=None)


def ask(number: str) -> SlurmJob | None:
    """The job: from the controller, which forgets jobs soon, or else from the accounting.

    None where there is neither, or neither knows it.
    """
    words = (said("scontrol", "--oneliner", "show", "job", number) or "").split()
    found = dict(word.split("=", 1) for word in words if "=" in word)
    if "JobState" not in found:
        columns = f"--format={','.join(_ACCOUNT)}"
        rows = said("sacct", "--noheader", "--parsable2", "-X", f"--jobs={number}", columns)
        fields = (rows or "").partition("\n")[0].split("|")
        if len(fields) != len(_ACCOUNT):
            return None
        found = dict(zip(_ACCOUNT, fields, strict=True))
        found["JobState"] = found["State"].partition(" ")[0]  # of 'CANCELLED by 1000'
        found |= {f"{name}Time": found[name] for name in ("Submit", "Start", "End")}
    return SlurmJob(
        number=number,
        state=found["JobState"],
        reason=_unless_none(found.get("Reason", "")),
        nodes=_unless_none(found.get("NodeList", "")),
        submitted=_seconds(found.get("SubmitTime", "")),
        started=_seconds(found.get("StartTime", "")),
        ended=_seconds(found.get("EndTime", "")),
    )


def kill_wait() -> float | None:
    """Seconds from SIGTERM to SIGKILL, a setting of the cluster; None where it cannot be asked."""
    found = re.search(r"^KillWait\s*=\s*(\d+) sec", said("scontrol", "show", "config") or "", re.M)
    return float(found[1]) if found else None


def _unless_none(text: str) -> str:
    return "" if text in ("None", "(null)", "None assigned") else text


def _seconds(text: str) -> float | None:
    with contextlib.suppress(ValueError):  # such as Unknown; the time is local
        return datetime.datetime.fromisoformat(text).timestamp()
    return None
