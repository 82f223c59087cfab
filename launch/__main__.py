"""Command line: `python -m launch COMMAND …`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from data_prep.files import describe
from launch import outcome, prometheus, submit


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m launch", description="Start things.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    command = commands.add_parser(
        "prometheus",
        help="configure, and start, a Prometheus that watches all runs",
        description="Write a Prometheus configuration that finds every run under RUN_ROOT.",
    )
    prometheus.add_arguments(command)
    command.set_defaults(run=prometheus.run)
    command = commands.add_parser(
        "slurm",
        help="submit jobs to SLURM",
        description="Render jobs for SLURM, have it check them, and submit them.",
    )
    submit.add_arguments(command)
    command = commands.add_parser(
        "outcome",
        help="say in one word how a job left a run",
        description="Print completed, interrupted, stopped, stuck or failed.",
    )
    outcome.add_arguments(command)
    command.set_defaults(run=outcome.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {describe(error)}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
