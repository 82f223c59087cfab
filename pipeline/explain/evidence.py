"""All that a run has left to be read, read once."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pipeline.config.schema import Config
from pipeline.explain import slurm
from pipeline.metrics.declared import GLOBAL_STEP, LAST_STEP
from pipeline.metrics.outcomes import RunStatus, read_run_status
from pipeline.metrics.rank_file import RankFile
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import attempts_of, of_training
from pipeline.run.events import CheckpointEvent, EndEvent, Event, RunEvent, StartEvent
from pipeline.run.settings import read_settings

_TAIL_BYTES = 1 << 18

_CLOCKS_SECONDS = 2.0
"""By so much the clocks of hosts may differ."""

_SHARD = re.compile(r"(?<![^\s/])([^\s/]+\.(?:tar|beton))\b")

_REPORTED = re.compile(r"error: (?!rank \d+ was killed by )(.+)")

_BEGIN = re.compile(r"^(?:job \d+, start \d+, on |[\w-]+ → )", re.MULTILINE)
"""What the start of a job writes first, and a process group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What is there of a run, and of its last attempt."""

    run: RunDirectory
    now: float
    host: str
    events: Sequence[Event]
    """All rows."""
    rows: Sequence[Event]
    """All events of training, also those that a resume has made void."""
    attempt: Sequence[Event]
    """Those of the last attempt."""
    status: RunStatus
    ranks: Sequence[RankFile]
    """The files that ranks of the last attempt have published."""
    config: Config | None
    """None if it cannot be read."""
    log: Sequence[str]
    """Lines of the last attempt's logs."""
    job_number: str | None
    """Of the last one that was submitted to SLURM."""
    job: slurm.SlurmJob | None
    """None if SLURM is not asked, or does not know it."""
    asks: bool
    """Whether programs and servers may be asked, too."""

    @classmethod
    def read(cls, run: RunDirectory, events: Sequence[Event], now: float, *, asks: bool) -> Self:
        host, rows = socket.gethostname(), of_training(events)
        attempt, number = [[], *attempts_of(rows)][-1], slurm.last_job(run, events)
        status = read_run_status(run, host, now)
        return cls(
            run=run,
            now=now,
            host=host,
            events=events,
            rows=rows,
            attempt=attempt,
            status=status,
            ranks=[file for file in status.ranks if file.writer.since >= _began(attempt)],
            config=_config(run),
            log=_lines(run, attempt[0].time if attempt else 0.0),
            job_number=number,
            job=slurm.ask(number) if number is not None and asks else None,
            asks=asks,
        )

    @property
    def end(self) -> EndEvent | None:
        """The last word of the last attempt."""
        last = self.attempt[-1] if self.attempt else None
        return last if isinstance(last, EndEvent) else None

    @property
    def error(self) -> str:
        """Why it failed, as it said itself; empty if it did not."""
        return (self.end and self.end.error) or ""

    @property
    def killed(self) -> list[RankFile]:
        """Ranks of the last attempt that are gone without a last word."""
        return [file for file in self.ranks if self.outcome_of(file) == "killed"]

    def outcome_of(self, file: RankFile) -> str:
        return file.outcome(self.host, self.now)

    @property
    def reported(self) -> list[str]:
        """Errors in the log, but not those of whoever started the ranks."""
        return [match[1] for line in self.log if (match := _REPORTED.match(line))]

    def host_of(self, rank: int) -> str | None:
        hosts = {file.writer.rank: file.writer.host for file in self.ranks}
        return hosts.get(rank)

    @property
    def step(self) -> int:
        """The last that is known to be done."""
        published = [file.value(GLOBAL_STEP) or 0 for file in self.ranks]
        return int(max([*published, *(row.step for row in self.attempt)], default=0))

    @property
    def heard(self) -> float:
        """When the run was last heard of; 0 if never."""
        times = [file.heartbeat for file in self.ranks]
        return max([*times, *(row.time for row in self.rows[-1:])], default=0.0)

    @property
    def lost(self) -> tuple[int, float]:
        """Steps of the last attempt that are not saved, and the seconds since the last save."""
        saves = [row for row in self.rows if isinstance(row, CheckpointEvent | RunEvent)]
        if not saves:
            return 0, 0.0
        times = [file.value(LAST_STEP) or 0.0 for file in self.ranks]
        times += [row.time for row in self.rows if not isinstance(row, EndEvent)]
        saved, num_steps = saves[-1].time, max(0, self.step - saves[-1].step)
        if isinstance(saves[-1], CheckpointEvent) and saves[-1].waited_seconds is not None:
            saved -= saves[-1].seconds  # steps went on while it was written
        return num_steps, max(times) - saved if num_steps else 0.0


def shard_in(text: str) -> str | None:
    """The name of the first shard in a text."""
    match = _SHARD.search(text)
    return match[1] if match else None


def unfetched_shard(log: Sequence[str]) -> str | None:
    """The shard that a fetch last failed for, and that is being fetched again."""
    failed = (line for line in reversed(log) if "; trying again in " in line)
    return shard_in(next(failed, ""))


def _began(attempt: Sequence[Event]) -> float:
    """When its first process began, or a little before; 0 if it does not say."""
    begins = [row.began for row in attempt if isinstance(row, StartEvent | EndEvent)]
    return min(filter(None, begins), default=0.0) - _CLOCKS_SECONDS


def _config(run: RunDirectory) -> Config | None:
    with contextlib.suppress(OSError, ValueError):
        return read_settings(run).config
    return None


def _lines(run: RunDirectory, begin: float) -> list[str]:
    """Of the logs that were written to since `begin`, one a node, or else of the newest."""
    newest, lines = run.newest_log, []
    files = sorted(path for path in run.logs.glob("*.log") if path.is_file())
    logs = [path for path in files if path.stat().st_mtime >= begin]
    texts = [_tail(path) for path in logs or ([newest] if newest else [])]
    # A later job may have been refused.
    trained = [text for text in texts if _BEGIN.search(text)] or texts
    for text in trained:
        begins = [match.start() for match in _BEGIN.finditer(text)]
        lines += text[begins[-1] if begins else 0 :].splitlines()
    return lines


def _tail(log: Path) -> str:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        return file.read().decode(errors="replace")
    return ""
