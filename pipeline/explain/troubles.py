"""What is wrong with a run that goes on, the worst first; and that it did not learn."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import assert_never

from data_prep.shard_set.files import as_text
from pipeline.config.model import ranks_per_replica
from pipeline.explain.evidence import Evidence, unfetched_shard
from pipeline.explain.explanation import Cause
from pipeline.metrics.declared import LAST_STEP, RANK_PHASE
from pipeline.metrics.discovery import Target
from pipeline.metrics.rank_file import RankFile
from pipeline.run.console import counted, duration
from pipeline.run.event_log import of_type
from pipeline.run.events import CheckpointEvent, DamagedImage, NotLearning, Straggler, TrainEvent
from pipeline.run.ledger import Ledger
from pipeline.run.phase import PHASE_LABELS, Phase

_STALL_SECONDS = 10.0

_RECENT_SECONDS = 180.0
"""A straggler is reported once a minute for as long as it is one."""

_ALIKE = 0.01
"""Two losses of guessing differ by less."""

_OFTEN = 3

_NO_SAVE = re.compile(r"warning: no checkpoint saved: (.*)")


def troubles(seen: Evidence, ledger: Ledger | None) -> list[Cause]:
    """Of a run that trains."""
    found = [cause for read in _READERS for cause in read(seen)]
    return found + (preemptions(ledger) if ledger else [])


def _silent(seen: Evidence) -> Iterator[Cause]:
    """Processes that are there and publish nothing, or that are gone while others are there."""
    for file in seen.ranks:
        writer, silence = file.writer, seen.now - file.heartbeat
        who = f"rank {writer.rank} on {writer.host}"
        if file in seen.killed:
            yield Cause(
                kind="killed_rank",
                text=f"{who} is gone, and the others have not noticed yet",
                rank=writer.rank,
                host=writer.host,
            )
        elif silence > file.max_silence_seconds and seen.outcome_of(file) == "running":
            yield Cause(
                kind="silent_rank",
                text=f"{who} has given no sign of life for {duration(silence)}",
                rank=writer.rank,
                host=writer.host,
            )


def _stall(seen: Evidence) -> Iterator[Cause]:
    """No step for long: because of the ranks that do not wait for others, if they are at one."""
    steps = [file.value(LAST_STEP) or 0.0 for file in seen.ranks]
    silence = seen.now - max(steps) if any(steps) else 0.0
    trains = of_type(seen.attempt, TrainEvent)
    usual = max((new.time - old.time for old, new in itertools.pairwise(trains)), default=0.0)
    phases = {file.writer.rank: _phase(file) for file in seen.ranks}
    is_otherwise = any(phase is not None and phase.label is None for phase in phases.values())
    if silence <= max(_STALL_SECONDS, usual) or is_otherwise:  # evaluating and saving take long
        return
    busy = _busy(seen, phases)
    if len({*busy.values()}) != 1:
        text = f"no step has ended for {duration(silence)}; which rank holds up others is not known"
        yield Cause(kind="stall", text=text)
        return
    (phase,) = {*busy.values()}
    rank = next(iter(busy)) if len(busy) == 1 else None
    host = None if rank is None else seen.host_of(rank)
    who = f"ranks {', '.join(map(str, busy))} are" if rank is None else f"rank {rank} on {host} is"
    text = f"no step has ended for {duration(silence)}, as {who} {phase.text}"
    shard = unfetched_shard(seen.log) if phase is Phase.READING else None
    if shard is not None:
        text += f"; {shard} could not be fetched so far"
    name = phase.name.lower()
    yield Cause(kind="stall", text=text, rank=rank, host=host, phase=name, shard=shard)


def _phase(file: RankFile) -> Phase | None:
    """Where the rank was when it last published; None if it does not say."""
    is_at = {phase: file.value(RANK_PHASE, phase=phase.name.lower()) for phase in Phase}
    return next((phase for phase in Phase if is_at[phase]), None)


def _busy(seen: Evidence, phases: Mapping[int, Phase | None]) -> dict[int, Phase]:
    """The ranks that are at work and do not wait for another one; none if one does not say."""
    config, known = seen.config, {rank: phase for rank, phase in phases.items() if phase}
    if config is None or len(known) < len(phases):
        return {}
    is_split, is_resident = ranks_per_replica(config.model.columns) > 1, config.data.is_resident
    return {
        rank: phase
        for rank, phase in known.items()
        if not phase.may_wait(is_main=rank == 0, is_split=is_split, is_resident=is_resident)
    }


def _saving(seen: Evidence) -> Iterator[Cause]:
    """There is no room for the next checkpoint, or the last save failed.

    Before the first one it is not known how much room that needs: then a full disk is one that has
    less than a hundredth left.
    """
    sizes = [row.num_bytes for row in of_type(seen.rows, CheckpointEvent)]
    with contextlib.suppress(OSError):
        disk = shutil.disk_usage(seen.run.checkpoints)
        needed = sizes[-1] if sizes else disk.total // 100
        if disk.free < needed:
            room = f"{disk.free / 1e6:,.1f} MB free, and a checkpoint needs"
            text = f"{seen.run.checkpoints} has {room} {needed / 1e6:,.1f} MB or so"
            yield Cause(kind="disk_full", text=text)
            return
    for line in reversed(seen.log):
        if line.startswith("saved "):
            return
        if match := _NO_SAVE.match(line):
            text = f"the last checkpoint could not be saved: {match[1]}"
            yield Cause(kind="saves_fail", text=text)
            return


def _straggler(seen: Evidence) -> Iterator[Cause]:
    for row in of_type(seen.attempt, Straggler)[-1:]:
        if seen.now - row.time > _RECENT_SECONDS:
            return
        match row.slow:
            case "rank":
                who = f"rank {row.rank} on {row.host} makes the others wait"
            case "loader":
                who = "now one rank makes the others wait and now another: it is the reading"
            case "unattributed":
                who = "steps are slower than the ranks' own work explains"
            case _:
                assert_never(row.slow)
        where = "" if row.phase is None else f" ({PHASE_LABELS[row.phase]})"
        text = f"{who}{where}, for {row.lag_seconds:.3g} s a step"
        yield Cause(kind="straggler", text=text, rank=row.rank, host=row.host, phase=row.phase)


def not_learning(seen: Evidence) -> Iterator[Cause]:
    """The last loss is still that with which the alarm rang."""
    alarms, trains = of_type(seen.attempt, NotLearning), of_type(seen.attempt, TrainEvent)
    if alarms and trains and math.isclose(trains[-1].loss, alarms[-1].loss, rel_tol=_ALIKE):
        text = f"it is not learning: the loss is {trains[-1].loss:.4f}, that of guessing"
        yield Cause(kind="not_learning", text=f"{text}, since step {alarms[-1].step:,} at least")


def damages(seen: Evidence) -> Iterator[Cause]:
    """Images that others stand in for."""
    found = of_type(seen.attempt, DamagedImage)
    if found:
        shards, ranks = {row.shard for row in found}, {row.rank for row in found}
        names = ", ".join(sorted(filter(None, shards))[:3])
        images = counted(len(found), "damaged image")
        yield Cause(
            kind="corrupt_samples",
            text=f"others stand in for {images}" + (f" in {names}" if names else ""),
            rank=found[0].rank if len(ranks) == 1 else None,
            shard=found[0].shard if len(shards) == 1 else None,
        )


def preemptions(ledger: Ledger) -> list[Cause]:
    """So many that they may cost more than they should."""
    if ledger.num_preemptions < _OFTEN or not ledger.total_seconds:
        return []
    away = sum(ledger.seconds[name] for name in ("queued", "starting", "lost", "down"))
    share = away / ledger.total_seconds
    text = f"it was preempted {ledger.num_preemptions} times: {share:.0%} of its time is gone"
    return [Cause(kind="preempted", text=text)]


def _exporters(seen: Evidence) -> Iterator[Cause]:
    """Exporters that have not withdrawn their targets, and do not answer."""
    run = seen.run
    targets = filter(None, map(Target.read, sorted(run.targets.glob("*.json"))))
    for target in targets if seen.asks else ():
        node = target.labels.get("node")
        is_far = node != seen.host and target.address.startswith(("127.", "localhost", "[::1]"))
        is_its = target.labels.get("run_dir") == as_text(str(run.path.resolve()))
        if is_its and not is_far and not target.is_answered():
            text = f"the exporter on {node} does not answer at {target.address}"
            yield Cause(kind="dead_exporter", text=text, host=node)


_READERS: Sequence[Callable[[Evidence], Iterator[Cause]]] = (
    *(_silent, _stall, _saving, _straggler, not_learning, damages, _exporters),
)
