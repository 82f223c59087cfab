"""`RUN/metrics/rank-NNNNN.prom`: one rank's metrics as text, and which process wrote them.

    # {"format_version": 1, "rank": 0, "local_rank": 0, "host": "node17", "pid": 4711, …}
    # HELP alexnet_train_steps_total …
    …
    # EOF

The first line lets the exporter of the same host tell a live rank from a dead one at once, and
leave the ranks of other hosts in a shared run directory alone; the last one shows that nothing is
missing. Both are comments to Prometheus, so node_exporter's textfile collector takes these files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from data_prep.shard_set import metric
from data_prep.shard_set.typed import check_types, read_json
from pipeline.config.timeouts import MISSED_PUBLICATIONS
from pipeline.metrics.declared import HEARTBEAT, RANK_OUTCOME, STEP_SECONDS
from pipeline.run.ending import RUN_OUTCOMES, RunOutcome, process_start_ticks
from pipeline.run.format_version import RANK_FILE_VERSION, check_format_version

if TYPE_CHECKING:
    from prometheus_client import Metric
    from prometheus_client.samples import Sample

PATTERN = "rank-*.prom"

_END = b"# EOF\n"


def rank_file_name(rank: int) -> str:
    return f"rank-{rank:05d}.prom"


@dataclass(frozen=True, kw_only=True, slots=True)
class Writer:
    """The process behind a rank file; `since` is when it began to publish, in Unix seconds."""

    rank: int
    local_rank: int
    host: str
    pid: int
    start_ticks: int
    since: float
    interval_seconds: float

    @classmethod
    def this_process(cls, *, rank: int, local_rank: int, interval_seconds: float) -> Self:
        return cls(
            rank=rank,
            local_rank=local_rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            start_ticks=process_start_ticks(os.getpid()) or 0,
            since=time.time(),
            interval_seconds=interval_seconds,
        )

    @property
    def is_running(self) -> bool:
        """Whether the process still exists; true only on its own host."""
        return process_start_ticks(self.pid) == self.start_ticks


@dataclass(frozen=True, kw_only=True, slots=True)
class RankFile:
    """What one rank published last; `heartbeat` is when, in Unix seconds."""

    writer: Writer
    heartbeat: float
    said: RunOutcome
    """How it stood then."""
    was_running: bool
    """`Writer.is_running` when the file was read."""
    families: tuple[Metric, ...]
    """The others."""

    @property
    def labels(self) -> dict[str, str]:
        return {"rank": str(self.writer.rank), "local_rank": str(self.writer.local_rank)}

    @property
    def max_silence_seconds(self) -> float:
        """How long a rank may publish nothing."""
        return MISSED_PUBLICATIONS * self.writer.interval_seconds

    def value(self, wanted: metric.Metric, **labels: str) -> float | None:
        """That of a sample; None if it is not there, or not finite."""
        found = (s.value for s in self._samples(wanted) if labels.items() <= s.labels.items())
        return next(found, None)

    @property
    def phase_seconds(self) -> dict[str, float]:
        """Of the steps, by the label of the phase, since the process began."""
        samples = (s for s in self._samples(STEP_SECONDS) if "phase" in s.labels)
        return {sample.labels["phase"]: sample.value for sample in samples}

    def _samples(self, wanted: metric.Metric) -> Iterator[Sample]:
        samples = (sample for family in self.families for sample in family.samples)
        return (s for s in samples if s.name == wanted.name and math.isfinite(s.value))

    def is_up(self, now: float) -> bool:
        """Whether the rank runs and has published lately."""
        return self.was_running and self._is_fresh(now)

    def outcome(self, host: str, now: float) -> RunOutcome:
        """How it stands, as seen from `host`: of another host's processes only silence is known."""
        if self.said != "running":
            return self.said
        is_here = self.writer.host == host
        is_alive = self.was_running if is_here else self._is_fresh(now)
        return "running" if is_alive else "killed"

    def _is_fresh(self, now: float) -> bool:
        return now - self.heartbeat <= self.max_silence_seconds


def render_rank_file(writer: Writer, exposition: bytes) -> bytes:
    """The content of the file, from a Prometheus text exposition."""
    facts = {"format_version": RANK_FILE_VERSION} | asdict(writer)
    return f"# {json.dumps(facts)}\n".encode() + exposition + _END


def read_writer(path: Path) -> Writer:
    """Who wrote the file.

    Raises `OSError`, and `ValueError` if its first line is damaged or names a newer version.
    """
    if path.exists() and not path.is_file():  # for a pipe it would wait
        raise ValueError(f"{path}: is not a file")
    with path.open("rb") as file:
        line = file.readline()
    try:
        fields = read_json(line.removeprefix(b"# "))
        writer = Writer(**{field.name: fields[field.name] for field in dataclasses.fields(Writer)})
        check_types(writer, Writer, "")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: the first line does not name its writer: {error!r}") from None
    check_format_version(fields.get("format_version", 1), RANK_FILE_VERSION, path)
    if path.name != rank_file_name(writer.rank):
        raise ValueError(f"{path}: was written for rank {writer.rank}")
    return writer


def last_heartbeat(directory: Path) -> float | None:
    """When a rank whose file is in `directory` last published; None if none did, as far as known.

    Of each file only that line is parsed: there may be hundreds.
    """
    found = []
    for path in filter(Path.is_file, directory.glob(PATTERN)):
        with contextlib.suppress(OSError, ValueError):
            _, _, rest = path.read_bytes().partition(f"\n{HEARTBEAT.name}{{".encode())
            found.append(float(rest.partition(b"\n")[0].rpartition(b" ")[2]))
    return max(found, default=None)


def read_rank_file(path: Path) -> RankFile:
    """The whole file. Raises `OSError`, and `ValueError` if anything in it is damaged."""
    file = _read(path)
    # A rank that has ended since may have published a last word since, too.
    return file if file.was_running else _read(path)


def _read(path: Path) -> RankFile:
    from prometheus_client.parser import text_string_to_metric_families

    writer = read_writer(path)
    content = path.read_bytes()
    if not content.endswith(_END):
        raise ValueError(f"{path}: its end is missing")
    try:
        families = tuple(text_string_to_metric_families(content.decode()))
    except (IndexError, ValueError) as error:  # the parser slices lines that it takes for whole
        raise ValueError(f"{path}: is not a Prometheus text exposition: {error}") from None
    values = {
        (sample.name, sample.labels.get("outcome")): sample.value
        for family in families
        for sample in family.samples
    }
    heartbeat = values.get((HEARTBEAT.name, None))
    if heartbeat is None or not math.isfinite(heartbeat):
        raise ValueError(f"{path}: has no {HEARTBEAT.name}")
    return RankFile(
        writer=writer,
        heartbeat=heartbeat,
        said=next(
            (state for state in RUN_OUTCOMES if values.get((RANK_OUTCOME.name, state))), "running"
        ),
        was_running=writer.is_running,
        families=tuple(family for family in families if family.name != RANK_OUTCOME.name),
    )
