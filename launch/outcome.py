"""How a job left a run, told from the run's own events: torchrun's exit code does not say it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Literal

from pipeline.events import Event, read_events
from pipeline.run_directory import RunDirectory

Outcome = Literal["completed", "interrupted", "stopped", "stuck", "failed"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN")
    parser.add_argument(
        "--since",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="of Unix time, when the job began; default: the whole history",
    )
    parser.add_argument(
        "--code", type=int, default=0, help="that torchrun ended with (default: %(default)s)"
    )


def run(options: argparse.Namespace) -> None:
    path = RunDirectory(options.run_dir).events
    rows = read_events(path) if path.is_file() else []
    sys.stdout.write(f"{outcome_of(rows, options.since, options.code)}\n")


def outcome_of(history: list[Event], since: float = 0.0, code: int = 0) -> Outcome:
    """What the job that began at `since` (Unix seconds) has left of a run.

    One that left nothing had nothing to do if torchrun's exit code says that all went well.

    completed    all steps asked for are done, or were before
    interrupted  a signal ended it early: it can go on
    stopped      somebody asked for it with a file STOP: it can go on, but shall not by itself
    stuck        a signal ended it before it had done a single step: it would be so again
    failed       anything else, a death without a last word too
    """
    if not history or history[-1]["kind"] != "end":
        return "failed"
    end = history[-1]
    begins = [row for row in history if row["kind"] == "run"]
    begins_now = [row for row in begins if row["time"] >= since]
    last_attempt = history[history.index(begins[-1]) :] if begins else []
    sources = [row["source"] for row in last_attempt if row["kind"] == "signal"]
    if end["outcome"] == "completed" or (end["outcome"] == "stopped" and not sources):
        # Without a signal it stopped where --max-steps said.
        return "completed" if begins_now or code == 0 else "failed"
    if end["outcome"] == "failed" or not begins_now:
        return "failed"
    if not sources[-1].startswith("SIG"):
        return "stopped"
    return "interrupted" if end["step"] > begins_now[0]["step"] else "stuck"
