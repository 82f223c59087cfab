"""`python -m launch doctor`: checks this machine, on as many ranks as a training would have."""

from __future__ import annotations

import argparse
import subprocess
import sys

from launch.local import num_gpus, torchrun_command

_OPTIONS = {
    "--shards": "the shard set that is to be trained on",
    "--run-dir": "where the run is to go",
    "--decode-threads": "data.decode_threads of the run",
    "--device": "distributed.device of the run",
}
"""Those of `pipeline.doctor`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nproc", type=int, help="ranks; default: one a GPU, on CPUs one")
    for option, text in _OPTIONS.items():
        parser.add_argument(option, dest=option, help=text)


def run(options: argparse.Namespace) -> int:
    """Returns 0 if all is well."""
    given = {option: getattr(options, option) for option in _OPTIONS}
    words = [word for option in given.items() if option[1] is not None for word in option]
    num_ranks = options.nproc or num_gpus() or 1
    command = torchrun_command(num_ranks, 0, "pipeline.doctor", words)
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.stderr.write(_of_ranks(done.stderr))
    return min(1, done.returncode)


def _of_ranks(text: str) -> str:
    """What the ranks wrote; torchrun adds a page to every exit that is not 0."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if line.startswith(("error: ", "usage: ")))
