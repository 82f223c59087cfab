"""Command line: `python -m launch COMMAND …`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

from data_prep.shard_set.files import describe
from data_prep.shard_set.options import Command, Parser, add_commands
from data_prep.shard_set.streams import exit_code_after_flush, open_streams, say
from launch import (
    compare,
    demo,
    doctor,
    explain,
    local,
    manifests,
    outcome,
    plan,
    prometheus,
    runs,
    submit,
)
from pipeline.follow import command as follow
from pipeline.run.ending import ExitCode
from pipeline.watch import server as watch

_COMMANDS: Mapping[str, Command] = {
    "demo": (demo.Options, demo.run),
    "local": (local.Options, local.run),
    "plan": (plan.Options, plan.run),
    "doctor": (doctor.Options, doctor.run),
    "status": (runs.StatusOptions, runs.status),
    "explain": (explain.Options, explain.run),
    "compare": (compare.Options, compare.run),
    "stop": (runs.StopOptions, runs.stop),
    "logs": (runs.LogOptions, runs.logs),
    "watch": (watch.Options, watch.run),
    "follow": (follow.Options, follow.run),
    "outcome": (outcome.Options, outcome.run),
    "prometheus": (prometheus.Options, prometheus.run),
}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m launch", description="Train here or on a cluster, and look after runs."
    )
    commands = add_commands(parser, "COMMAND", _COMMANDS)
    text = "Render jobs for SLURM, have it check them, and submit them"
    submit.add_arguments(commands.add_parser("slurm", help=text, description=f"{text}."))
    text = "Render the objects of jobs for Kubernetes"
    manifests.add_arguments(commands.add_parser("kubernetes", help=text, description=f"{text}."))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        code = options.run(options)
        return exit_code_after_flush(0) if code is None else code  # else it says how a job ended
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except (ImportError, OSError, ValueError) as error:
        say(f"error: {describe(error)}", stream=sys.stderr)
        return ExitCode.FAILED


if __name__ == "__main__":
    open_streams()
    sys.exit(main())
