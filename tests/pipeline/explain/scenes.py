"""Run directories as jobs leave them, written by the code that writes real ones."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from data_prep.shard_set.families import Families, exposition
from pipeline.explain.explain import explain
from pipeline.explain.explanation import Explanation
from pipeline.metrics.declared import (
    HEARTBEAT,
    LAST_STEP,
    LOSS_NOT_FINITE,
    RANK_OUTCOME,
    RANK_PHASE,
)
from pipeline.metrics.rank_file import Writer, rank_file_name, render_rank_file
from pipeline.run.directory import RunDirectory
from pipeline.run.ending import RunOutcome
from pipeline.run.event_log import append
from pipeline.run.phase import Phase
from tests.pipeline.fake_run import checkpoint_fields, event, start_fields, train_fields

HERE = socket.gethostname()
BEGIN = 1_000_000_000.0
"""When the runs of these scenes begin; a step takes a second."""


class Scene:
    """A run of two ranks, the events of which say that it has come to step 15, and saved at 10."""

    def __init__(self, path: Path) -> None:
        self.run = RunDirectory(path)
        path.mkdir()

    def begin(self, resumed_from: int | None = None, time: float = BEGIN) -> None:
        step = resumed_from or 0
        self.row("run", step, time, **start_fields(resumed_from))

    def train(self, *steps: int) -> None:
        for step in steps:
            self.row("train", step, **train_fields(step))
            if step % 10 == 0:
                self.row("checkpoint", step, **checkpoint_fields("periodic"))

    def row(self, kind: str, step: int, time: float | None = None, **fields: Any) -> None:
        append(self.run.events, event(kind, step, BEGIN + step if time is None else time, **fields))

    def rank(
        self,
        rank: int,
        said: RunOutcome = "running",
        *,
        host: str = HERE,
        is_alive: bool = False,
        heartbeat: float = BEGIN + 15,
        last_step: float | None = None,
        phase: Phase | None = None,
        num_not_finite: int = 0,
        since: float = BEGIN - 1,
        pid: int = 4711,
    ) -> None:
        """The file that the rank published last; a process that is alive is this one."""
        registry = CollectorRegistry()
        families = Families(registry, rank=str(rank), local_rank=str(rank))
        families.gauges(RANK_OUTCOME)[said].set(1)
        families.gauge(HEARTBEAT).set(heartbeat)
        families.gauge(LAST_STEP).set(heartbeat if last_step is None else last_step)
        families.counter(LOSS_NOT_FINITE).inc(num_not_finite)
        phases = families.gauges(RANK_PHASE)
        if phase is not None:
            phases[phase.name.lower()].set(1)
        writer = Writer.this_process(rank=rank, local_rank=rank, interval_seconds=2)
        writer = dataclasses.replace(writer, host=host, since=since)
        if not is_alive:
            writer = dataclasses.replace(writer, pid=pid, start_ticks=1)
        self.run.metrics.mkdir(exist_ok=True)
        content = render_rank_file(writer, exposition(registry))
        (self.run.metrics / rank_file_name(rank)).write_bytes(content)

    def log(self, *lines: str, name: str = "local-20010909-014640-1", time: float = BEGIN) -> None:
        self.run.logs.mkdir(exist_ok=True)
        path = self.run.logs / f"{name}.log"
        path.write_text("".join(f"{line}\n" for line in lines))
        os.utime(path, (time, time))

    def explain(self, seconds: float = 20) -> Explanation:
        """So many seconds after the run began."""
        return explain(self.run, BEGIN + seconds)


def tools(folder: Path, answers: Mapping[str, str]) -> str:
    """Stand-ins for programs of the system; returns a PATH on which they come first."""
    folder.mkdir()
    for name, text in answers.items():
        (folder / name).write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
        (folder / name).chmod(0o755)
    return f"{folder}:/usr/bin:/bin"
