"""`python -m launch doctor`: checks this machine, on as many ranks as a training would have."""

from __future__ import annotations

import argparse
import subprocess
import sys

from data_prep.files import expanded
from launch.local import num_gpus, torchrun_command
from pipeline.config import located

_OPTIONS = ("shards", "run_dir", "decode_threads", "device")
"""Those of `pipeline.doctor`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nproc", type=int, help="ranks; default: one a GPU, on CPUs one")
    parser.add_argument("--shards", type=located, help="the shard set that is to be trained on")
    parser.add_argument("--run-dir", type=expanded, help="where the run is to go")
    parser.add_argument("--decode-threads", type=int, help="data.decode_threads of the run")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), help="distributed.device of the run"
    )


def run(options: argparse.Namespace) -> int:
    """Returns 0 if all is well. Raises `ValueError` if the number of ranks is none."""
    words = []
    for name in _OPTIONS:
        value = getattr(options, name)
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    num_ranks = options.nproc if options.nproc is not None else num_gpus() or 1
    if num_ranks < 1:
        raise ValueError(f"--nproc is {num_ranks}; expected at least 1")
    command = torchrun_command(num_ranks, 0, "pipeline.doctor", words)
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.stderr.write(_of_ranks(done.stderr))
    return min(1, done.returncode)


def _of_ranks(text: str) -> str:
    """What the ranks wrote; torchrun adds a page to every exit that is not 0."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if line.startswith("error: ")) or text
