"""`python -m launch doctor`: checks this machine, on as many ranks as a training would have."""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys

from data_prep.shard_set.files import path_option
from launch.local import local_environment, num_gpus, torchrun_command
from pipeline.config.data import location_option

_OPTIONS = ("shards", "run_dir", "decode_threads", "device")
"""Those of `pipeline.doctor`."""

_DEADLINE_SECONDS = 600
"""Longer than all checks, each of which has a deadline of its own, and the import of torch."""

_LEAVING_SECONDS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nproc", type=int, help="ranks; default: one a GPU, on CPUs one")
    parser.add_argument(
        "--shards", type=location_option, help="the shard set that is to be trained on"
    )
    parser.add_argument("--run-dir", type=path_option, help="where the run is to go")
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
    with subprocess.Popen(command, env=local_environment(), process_group=0) as child:
        try:
            return min(1, abs(child.wait(_DEADLINE_SECONDS)))
        except subprocess.TimeoutExpired:
            sys.stderr.write(
                "error: the start of the ranks is stuck: they have not ended within "
                f"{_DEADLINE_SECONDS} s, though each check has its deadline; is the file system "
                f"of {sys.prefix} at work?\n"
            )
            return 1
        finally:
            child.terminate()  # it ends its ranks
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_LEAVING_SECONDS)
            child.kill()
