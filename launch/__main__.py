"""Command line: `python -m launch COMMAND …`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from data_prep.shard_set.files import describe
from data_prep.shard_set.parser import Parser
from data_prep.shard_set.streams import exit_code_after_flush, open_streams
from launch import doctor, local, outcome, prometheus, runs, submit
from pipeline.run.ending import ExitCode


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m launch",
        description="Train here or on a cluster, and look after runs.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, text: str, description: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=description)

    command = add(
        "local", "train on this machine", "Train a recipe under torchrun. Options come before it."
    )
    local.add_arguments(command)
    command.set_defaults(run=local.run)
    command = add(
        "slurm",
        "submit jobs to SLURM",
        "Render jobs for SLURM, have it check them, and submit them.",
    )
    submit.add_arguments(command)
    command = add(
        "doctor", "check what ruins runs", "Check this machine for training: a line for each check."
    )
    doctor.add_arguments(command)
    command.set_defaults(run=doctor.run)
    for name, look, text in (
        ("status", runs.status, "say how far a run is"),
        ("stop", runs.stop, "ask a run to save and leave"),
    ):
        command = add(name, text, f"{text.capitalize()}, from its files.")
        runs.add_arguments(command)
        command.set_defaults(run=look)
    command = add(
        "logs", "show what a run's job writes", "Show the log of a run's job, or its newest."
    )
    runs.add_log_arguments(command)
    command.set_defaults(run=runs.logs)
    command = add(
        "outcome",
        "say in one word how a job left a run",
        "Print completed, interrupted, stopped, stuck or failed.",
    )
    outcome.add_arguments(command)
    command.set_defaults(run=outcome.run)
    command = add(
        "prometheus",
        "configure, and start, a Prometheus that watches all runs",
        "Write a Prometheus configuration that finds every run under RUN_ROOT.",
    )
    prometheus.add_arguments(command)
    command.set_defaults(run=prometheus.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        code = options.run(options)
        return exit_code_after_flush(0) if code is None else code  # else it says how a job ended
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {describe(error)}\n")
        return ExitCode.FAILED


if __name__ == "__main__":
    open_streams()
    sys.exit(main())
