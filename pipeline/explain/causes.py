"""Why a run has ended: readers of the evidence, in the order of a chain of causes.

An error that a rank gives itself comes before the loss of that rank for others, a verdict of the
watchdog before the kill that ends a rank that hangs, and what SLURM did before what its signals
led to. Each reader returns None if it has nothing to say. A rank is named only where just one can
be meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from pipeline.explain.evidence import Evidence, shard_in, unfetched_shard
from pipeline.explain.explanation import Cause, CauseKind
from pipeline.explain.stops import by_slurm
from pipeline.explain.system import booted, kernel_says
from pipeline.metrics.declared import LOSS_NOT_FINITE
from pipeline.run.event_log import of_type
from pipeline.run.events import ReplicasDiffer, RunEvent
from pipeline.run.phase import Phase

_LOST = "lost another rank"
_KILLED = re.compile(r"error: rank (\d{1,9}) was killed by (SIG\w+)")
_OF_RANK = re.compile(r"rank (\d{1,9}) on (\S+): (.*)", re.DOTALL)
_HANGS = re.compile(
    r"rank (?P<rank>\d{1,9})(?: on (?P<host>\S+))? (?:hangs|gives no sign of life)"
    r"(?:, (?P<phase>[a-z' ]+) after step)?"
)
_NAMES_NOBODY = re.compile(
    "all ranks wait for each other|the store where the ranks meet does not answer"
)
_ADVICE = re.compile(r"; (?:lower|once that is mended|see that it is there) .*")
_STACKS = re.compile(r"; the stacks of all ranks are in .*")

_KINDS: Sequence[tuple[CauseKind, str]] = (
    ("disk_full", r"No space left on device|Disk quota exceeded"),
    ("corrupt_samples", r"damaged image|image of the split is damaged|not the image that was"),
    ("fetch", r"could not be fetched in "),
    ("diverged", r"training has diverged|were not finite"),
    ("gpu_out_of_memory", r"CUDA out of memory"),
    ("out_of_memory", r"MemoryError|Cannot allocate memory|not enough memory"),
)
"""What errors say, and the kind of cause that it is."""


def first_cause(seen: Evidence) -> Cause | None:
    """Why the run has failed or was killed; None if nothing says it."""
    found = (read(seen) for read in _READERS)
    return next((cause for cause in found if cause is not None), None)


def _replicas(seen: Evidence) -> Cause | None:
    for row in of_type(seen.attempt, ReplicasDiffer)[-1:]:
        text = f"the replicas differ, first in {row.tensor}: {row.what}"
        return Cause(kind="replicas_differ", text=text, rank=row.rank, host=row.host)
    return None


def _verdict(seen: Evidence) -> Cause | None:
    """Of the watchdog: in the last event, in what the ranks left in `hangs`, or in a log."""
    begin = seen.attempt[0].time if seen.attempt else 0.0
    files = (path for path in seen.run.hangs.glob("*.txt") if path.is_file())
    dumps = [path for path in files if path.stat().st_mtime >= begin]
    first_lines = (path.read_text(errors="replace").partition("\n")[0] for path in sorted(dumps))
    for text in (seen.error, *first_lines, *seen.reported):
        found = list(_HANGS.finditer(text))
        if found or _NAMES_NOBODY.search(text):
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
    """What a rank said at the end, if it was not the loss of another one."""
    is_lost = seen.end is None or seen.end.cause == "lost_rank"
    return None if is_lost or not seen.error else cause_of(seen, seen.error)


def _logged_error(seen: Evidence) -> Cause | None:
    """The first one in the log that does not follow from another one's."""
    errors = (text for text in seen.reported if _LOST not in text)
    return next((cause_of(seen, text) for text in errors), None)


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
    files = [file.writer for file in seen.ranks if file.value(LOSS_NOT_FINITE)]
    return (files[0].rank, files[0].host) if len(files) == 1 else (None, None)


def _killed(seen: Evidence) -> Cause | None:
    """Ranks that a signal ended, by the word of whoever started them."""
    said = [match for line in seen.log if (match := _KILLED.match(line))]
    # Those that torchrun ended itself, after another one, had SIGTERM first.
    said = [match for match in said if match[2] != "SIGTERM"] or said
    return _killed_by(seen, {int(match[1]): match[2] for match in said})


def _gone(seen: Evidence) -> Cause | None:
    """Ranks whose processes are gone, while others had a last word."""
    hosts = [file.writer.host for file in seen.killed]
    left = {file.writer.host for file in seen.ranks} - {*hosts}
    if len(hosts) > 1 and len({*hosts}) == 1 and left:
        return Cause(kind="lost_node", text=f"all ranks on {hosts[0]} are gone", host=hosts[0])
    has_last_word = seen.end is not None or len(seen.killed) < len(seen.ranks)
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
    file = next((file for file in seen.ranks if file.writer.rank == rank), None)
    host = file.writer.host if file else None
    who = f"rank {rank} on {host}" if host else f"rank {rank}"
    if file and host == seen.host and seen.asks and signal in ("", "SIGKILL"):
        words = kernel_says(file.writer)
        if words is not None:
            text, signal = f"{who} was killed for want of memory: {words}", "SIGKILL"
            return Cause(kind="out_of_memory", text=text, rank=rank, host=host, signal=signal)
    text = f"{who} was killed" + (f" by {signal}" if signal else "")
    return Cause(kind="killed_rank", text=text, rank=rank, host=host, signal=signal or None)


def _all_gone(seen: Evidence) -> Cause | None:
    """All ranks are gone without a word: of this host it is known whether it was started anew."""
    ranks = seen.ranks
    if not ranks or len(seen.killed) < len(ranks) or seen.end is not None:
        return None
    is_here = {file.writer.host for file in ranks} == {seen.host}
    if is_here and booted() > max(file.heartbeat for file in ranks):
        return Cause(kind="lost_node", text=f"{seen.host} was started anew", host=seen.host)
    return Cause(kind="lost_rank", text="all its processes are gone without a word, as if killed")


def _lost(seen: Evidence) -> Cause | None:
    if _LOST not in seen.error:
        return None
    return Cause(kind="lost_rank", text="a rank was lost, and it is not known which, or why")


_READERS: Sequence[Callable[[Evidence], Cause | None]] = (
    *(_replicas, _verdict, _own_error, by_slurm, _killed, _logged_error, _gone, _all_gone, _lost),
)
