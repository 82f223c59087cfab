"""How a job left a run, by the run's own events: torchrun's exit code does not say it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from data_prep.shard_set.fields import Reads, at_least
from data_prep.shard_set.options import Named
from data_prep.shard_set.streams import say
from launch.runs import existing
from pipeline.metrics.discovery import drop_unanswered
from pipeline.run.directory import RunDirectory
from pipeline.run.ending import JobOutcome, StopSource
from pipeline.run.event_log import last_of_training, of_training, of_type, read_events
from pipeline.run.events import CheckpointEvent, EndEvent, Event, RunEvent, SignalEvent


def _source(name: str) -> StopSource | None:
    """The source for the shell's name of a signal; None for an empty name."""
    return StopSource(f"SIG{name}") if name else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Say in one word how a job left a run: completed, interrupted, stopped, stuck or failed."""

    run_dir: Annotated[Path, Named("RUN")]
    """The run's directory."""
    after: Annotated[int | None, at_least(0), Named("--after", "BYTES")] = None
    """The size of RUN/events.jsonl when the job began; if not given, the whole history counts."""
    code: int = 0
    """The exit code of torchrun."""
    asked: Annotated[StopSource | None, Reads(_source), Named("--asked", "SIGNAL")] = None
    """The signal that the job got, such as USR1, if any."""


def run(options: Options) -> None:
    """Of what is no run directory a job has left nothing; a person may have its name wrong."""
    is_of_job = options.after is not None
    directory = RunDirectory(options.run_dir) if is_of_job else existing(options.run_dir)
    rows, is_new = read_events(directory.events, options.after or 0), is_new_run(directory)
    say(outcome_of(rows, options.code, options.asked, is_new=is_new))
    # SLURM kills a job's exporters together with its ranks.
    drop_unanswered(directory.targets, ("run_dir", str(directory.path.resolve())))


def is_new_run(run: RunDirectory) -> bool:
    """Whether no process group has ever written a row: it was submitted at most."""
    return last_of_training(run.events) is None


def outcome_of(
    rows: list[Event], code: int = 0, asked: StopSource | None = None, *, is_new: bool = True
) -> JobOutcome:
    """What the job that wrote `rows` has left of a run; `is_new` is as in `is_new_run`.

    One that left nothing had nothing to do if torchrun's exit code says that all went well. One
    that was `asked` to leave by a signal, and left no last word, was still starting, or was not
    given the time to save: its ranks were killed, and one may have reported that it lost another.
    """
    rows = of_training(rows)
    begins = [place for place, row in enumerate(rows) if isinstance(row, RunEvent)]
    end = rows[-1] if rows and isinstance(rows[-1], EndEvent) else None
    # Without a `run` row an earlier start of the job has stopped, to make room for this one.
    is_of_another = end is not None and end.outcome == "stopped" and not begins
    sources = [row.source for row in of_type(rows[max(begins, default=0) :], SignalEvent)]
    if asked and (end is None or is_of_another or end.cause == "lost_rank"):
        if begins and sources[-1:] == [StopSource.STOP_FILE]:  # which is removed by now
            return "stopped"
        return _outcome_of_signal(rows, asked)
    if end is None:
        return "failed" if rows or code or is_new else "completed"
    if end.outcome != "stopped":
        return end.outcome
    if not sources:  # it stopped where --max-steps said
        return "completed"
    if sources[-1] == StopSource.STOP_FILE:
        return "stopped"
    return _outcome_of_signal(rows, asked or sources[-1])


def _outcome_of_signal(rows: list[Event], source: str) -> JobOutcome:
    """By whether a step was saved since the first row."""
    saved = [
        row.step
        for row in rows
        if isinstance(row, CheckpointEvent)
        or (isinstance(row, EndEvent) and row.outcome == "stopped")
    ]
    is_further = bool(saved) and max(saved) > rows[0].step
    return "stuck" if source == StopSource.SIGUSR1 and not is_further else "interrupted"
