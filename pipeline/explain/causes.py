"""Why a run has ended: readers of the evidence, in the order of a chain of causes.

An error that a rank gives itself comes before the loss of that rank for others, a verdict of the
watchdog before the kill that ends a rank that hangs, and what SLURM did before what its signals
led to. Each reader returns None if it has nothing to say. A rank is named only where just one can
be meant.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.explain import slurm
from pipeline.explain.evidence import DISK_FULL, Evidence, shard_in, unfetched_shard, value
from pipeline.explain.explanation import Cause, CauseKind
from pipeline.metrics.declared import LOSS_NOT_FINITE
from pipeline.metrics.rank_file import RankFile
from pipeline.run.console import counted
from pipeline.run.ending import StopSource
from pipeline.run.event_log import of_type
from pipeline.run.events import ReplicasDiffer, RunEvent, SignalEvent
from pipeline.run.phase import Phase

_LOST = "lost another rank"
_KILLED = re.compile(r"error: rank (\d+) was killed by (SIG\w+)")
_OF_RANK = re.compile(r"rank (\d+) on (\S+): (.*)", re.DOTALL)
_HANGS = re.compile(
    r"rank (?P<rank>\d+)(?: on (?P<host>\S+))? (?:hangs|gives no sign of life)"
    r"(?:, (?P<phase>[a-z' ]+) after step)?"
)
_ADVICE = re.compile(r"; (?:lower|once that is mended|see that it is there) .*")
_STACKS = re.compile(r"; the stacks of all ranks are in .*")

_KINDS: Sequence[tuple[CauseKind, str]] = (
    ("disk_full", DISK_FULL),
    ("corrupt_samples", r"damaged image|image of the split is damaged|not the image that was"),
    ("fetch", r"could not be fetched in "),
    ("diverged", r"training has diverged|were not finite"),
    ("gpu_out_of_memory", r"CUDA out of memory"),
    ("out_of_memory", r"MemoryError|Cannot allocate memory|not enough memory"),
)
"""What errors say, and the kind of cause that it is."""

_SLURM_SAYS: Sequence[tuple[CauseKind, str, str]] = (
    ("out_of_memory", "OUT_OF_MEMORY", r"oom_kill event|OOM Killed"),
    ("time_limit", "TIMEOUT", r"DUE TO TIME LIMIT"),
    ("preempted", "PREEMPTED", r"DUE TO PREEMPTION"),
    ("lost_node", "NODE_FAIL", r"DUE TO NODE FAILURE"),
    ("requeued", "REQUEUED", r"DUE TO JOB REQUEUE"),
    ("cancelled", "CANCELLED", r"JOB \d+ ON \S+ CANCELLED AT \S+ \*\*\*"),
)
"""A job's state, and what stands in its log, for each way in which SLURM ends it."""

_SLURM_TEXTS: Mapping[CauseKind, str] = {
    "out_of_memory": "its memory ran out: SLURM reports that the kernel killed a process",
    "time_limit": "SLURM ended the job at its time limit",
    "preempted": "SLURM preempted the job",
    "lost_node": "SLURM lost a node of the job",
    "requeued": "the job was put back into SLURM's queue",
    "cancelled": "the job was cancelled",
}


def first_cause(seen: Evidence) -> Cause | None:
    """Why the run has failed or was killed; None if nothing says it."""
    found = (read(seen) for read in _READERS)
    return next((cause for cause in found if cause is not None), None)


def _replicas(seen: Evidence) -> Cause | None:
    for row in of_type(seen.attempt, ReplicasDiffer)[-1:]:
        who = "it is not decided which rank is wrong" if row.rank is None else row.what
        text = f"the replicas differ, first in {row.tensor}: {who}"
        return Cause(kind="replicas_differ", text=text, rank=row.rank, host=row.host)
    return None


def _verdict(seen: Evidence) -> Cause | None:
    """Of the watchdog: in the last event, in what the ranks left in `hangs`, or in a log."""
    begin = seen.attempt[0].time if seen.attempt else 0.0
    dumps = [path for path in seen.run.hangs.glob("*.txt") if path.stat().st_mtime >= begin]
    first_lines = (path.read_text(errors="replace").partition("\n")[0] for path in sorted(dumps))
    for text in (seen.error, *first_lines, *seen.reported):
        found = list(_HANGS.finditer(text))
        if found or "all ranks wait for each other" in text:
            return _hang(seen, _STACKS.sub("", text), found)
    return None


def _hang(seen: Evidence, text: str, found: Sequence[re.Match[str]]) -> Cause:
    if len(found) != 1:
        return Cause(kind="hang", text=text)
    rank, phase = int(found[0]["rank"]), found[0]["phase"]
    by_text = {known.text: known.name.lower() for known in Phase}
    is_reading = phase == Phase.READING.text
    shard = unfetched_shard(seen.log) if is_reading else None
    if shard is not None:
        text += f"; {shard} could not be fetched"
    return Cause(
        kind="hang",
        text=text,
        rank=rank,
        host=found[0]["host"] or seen.host_of(rank),
        phase=by_text.get(phase),
        shard=shard,
    )


def _own_error(seen: Evidence) -> Cause | None:
    """An error that a rank has given, and that is not the loss of another one."""
    is_lost = seen.end is not None and seen.end.cause == "lost_rank"
    errors = [] if is_lost or not seen.error else [seen.error]
    for text in [*errors, *seen.reported]:
        if _LOST not in text and not _HANGS.search(text):
            return cause_of(seen, text)
    return None


def cause_of(seen: Evidence, text: str) -> Cause:
    """An error's sentence as a cause."""
    kinds: list[CauseKind] = [kind for kind, words in _KINDS if re.search(words, text)]
    has_begun = any(isinstance(row, RunEvent) for row in seen.attempt)
    kind = kinds[0] if kinds else "error" if has_begun else "refused"
    match, rank, host = _OF_RANK.match(text), None, None
    if match is not None:
        rank, host, text = int(match[1]), match[2], match[3]
    # These all ranks find at once: the first to say it is not to blame.
    if kind == "diverged":
        rank, host = _not_finite(seen)
    elif "the checkpoint of step" in text:  # rank 0 alone writes it
        rank, host = 0, seen.host_of(0)
    text = _ADVICE.sub("", text if rank is None else f"rank {rank} on {host or '?'}: {text}")
    shard = shard_in(text) if kind in ("corrupt_samples", "fetch") else None
    return Cause(kind=kind, text=text, rank=rank, host=host, shard=shard)


def _not_finite(seen: Evidence) -> tuple[int | None, str | None]:
    """The only rank whose own loss was not finite, if just one was."""
    files = [file.writer for file in seen.status.ranks if value(file, LOSS_NOT_FINITE)]
    return (files[0].rank, files[0].host) if len(files) == 1 else (None, None)


def by_slurm(seen: Evidence) -> Cause | None:
    """What SLURM did to the job, by its own word or by what it wrote into the log."""
    begin = seen.attempt[0].time if seen.attempt else 0.0
    job, log = seen.job, "\n".join(seen.log)
    is_its = job is not None and job.started is not None and job.started <= begin + 1
    for kind, state, pattern in _SLURM_SAYS:
        if (is_its and job is not None and job.state == state) or re.search(pattern, log):
            return Cause(kind=kind, text=_SLURM_TEXTS[kind])
    return None


def _killed(seen: Evidence) -> Cause | None:
    """Ranks that a signal ended, by the word of whoever started them."""
    said = [match for line in seen.log if (match := _KILLED.match(line))]
    # Those that torchrun ended itself, after another one, had SIGTERM first.
    said = [match for match in said if match[2] != "SIGTERM"] or said
    return _killed_by(seen, {int(match[1]): match[2] for match in said})


def _gone(seen: Evidence) -> Cause | None:
    """Ranks whose processes are gone, while others had a last word."""
    hosts = [file.writer.host for file in seen.killed]
    left = {file.writer.host for file in seen.status.ranks} - {*hosts}
    if len(hosts) > 1 and len({*hosts}) == 1 and left:
        return Cause(kind="lost_node", text=f"all ranks on {hosts[0]} are gone", host=hosts[0])
    has_last_word = seen.end is not None or len(seen.killed) < len(seen.status.ranks)
    return _killed_by(seen, {file.writer.rank: "" for file in seen.killed if has_last_word})


def _killed_by(seen: Evidence, signals: Mapping[int, str]) -> Cause | None:
    """`signals` are the names by rank, empty where they are not known."""
    if not signals:
        return None
    if len(signals) > 1:
        names = ", ".join(map(str, sorted(signals)))
        text = f"ranks {names} were killed; which one was first is not known"
        return Cause(kind="killed_rank", text=text)
    ((rank, signal),) = signals.items()
    file = next((file for file in seen.status.ranks if file.writer.rank == rank), None)
    host = file.writer.host if file else None
    who = f"rank {rank} on {host}" if host else f"rank {rank}"
    kernel = _kernel(seen, file) if file and signal in ("", "SIGKILL") else None
    if kernel is not None:
        text, signal = f"{who} was killed for want of memory: {kernel}", "SIGKILL"
        return Cause(kind="out_of_memory", text=text, rank=rank, host=host, signal=signal)
    text = f"{who} was killed" + (f" by {signal}" if signal else "")
    return Cause(kind="killed_rank", text=text, rank=rank, host=host, signal=signal or None)


def _kernel(seen: Evidence, file: RankFile) -> str | None:
    """What the kernel of this host says of the death of that process, if it ran here."""
    writer = file.writer
    if not seen.asks or writer.host != seen.host:
        return None
    began = writer.start_ticks / os.sysconf("SC_CLK_TCK")
    pattern = rf"\[ *(\d+\.\d+)\].*?((?:Out of memory|[\w ]*out of memory): .*\b{writer.pid}\b.*)"
    for match in re.finditer(pattern, slurm.said("dmesg") or ""):
        if float(match[1]) >= began:  # else it was another process of that number
            return match[2]
    return None


def _all_gone(seen: Evidence) -> Cause | None:
    """All ranks are gone without a word: of this host it is known whether it was started anew."""
    ranks = seen.status.ranks
    if not ranks or len(seen.killed) < len(ranks) or seen.end is not None:
        return None
    is_here = {file.writer.host for file in ranks} == {seen.host}
    if is_here and _booted() > max(file.heartbeat for file in ranks):
        return Cause(kind="lost_node", text=f"{seen.host} was started anew", host=seen.host)
    return Cause(kind="lost_rank", text="all its processes are gone without a word, as if killed")


def _booted() -> float:
    """When this host was started, in Unix seconds."""
    lines = Path("/proc/stat").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("btime "))


def _lost(seen: Evidence) -> Cause | None:
    if _LOST not in seen.error:
        return None
    return Cause(kind="lost_rank", text="a rank was lost, and it is not known which, or why")


_READERS: Sequence[Callable[[Evidence], Cause | None]] = (
    *(_replicas, _verdict, _own_error, by_slurm, _killed, _gone, _all_gone, _lost),
)


def why_stopped(seen: Evidence, times: int) -> Cause:
    """Why a run has left as it was asked to; not by a person it was so often, in all."""
    signals = of_type(seen.attempt, SignalEvent)
    if not signals:
        return Cause(kind="max_steps", text="it did the steps that --max-steps asked for")
    name = signals[-1].source
    source = {known.value: known for known in StopSource}.get(name)
    if source is StopSource.STOP_FILE:
        return Cause(kind="stop_asked", text="a person asked for it, with 'launch stop' or STOP")
    if source is StopSource.END_OF_LAUNCHER:
        return Cause(kind="lost_launcher", text="torchrun or its launcher was gone")
    if source is StopSource.SIGUSR1:
        return Cause(kind="time_limit", text="its time ran out (SIGUSR1)", signal=name)
    if source is StopSource.SIGINT:
        return Cause(kind="stop_asked", text="a person asked for it (Ctrl-C)", signal=name)
    cause = by_slurm(seen)
    kind: CauseKind = "signal" if cause is None else cause.kind
    text = "it was asked to" if cause is None else cause.text
    if cause is None and seen.job is not None and seen.job.state == "PENDING":
        kind, text = "requeued", "SLURM took its nodes, for another job or because a person said so"
    often = f", after {counted(times - 1, 'such stop')} before" if times > 1 else ""
    return Cause(kind=kind, text=f"{text} ({name}){often}", signal=name)


def never_began(seen: Evidence) -> list[Cause]:
    """What became of the job of a run that has left nothing."""
    job = seen.job
    if job is None:
        return []
    kind: CauseKind = "cancelled" if job.state == "CANCELLED" else "error"
    return [Cause(kind=kind, text=f"job {job.number} is {job.state}, and no rank has begun")]
