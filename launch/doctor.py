"""`python -m launch doctor`: checks this machine, on as many ranks as a training would have."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated

from data_prep.shard_set.fields import at_least
from data_prep.shard_set.options import words_of
from data_prep.shard_set.streams import say
from launch.local import num_gpus
from launch.torchrun import local_environment, torchrun_command
from pipeline.config.order import Surroundings
from pipeline.config.schema import Config
from pipeline.config.timeouts import DOCTOR_SECONDS, SHUTDOWN_VARIABLE
from pipeline.doctor.options import DoctorOptions
from pipeline.explain.slurm import kill_wait
from pipeline.run.directory import RunDirectory
from pipeline.run.measured import check_run
from pipeline.run.settings import read_settings

_LEAVING_SECONDS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(DoctorOptions):
    """Check this machine for training, and print a line for each check."""

    nproc: Annotated[int | None, at_least(1)] = None
    """Number of ranks; if not given, one a GPU, on CPUs one."""


def run(options: Options) -> int:
    """Returns 0 if all is well."""
    run = RunDirectory(options.run_dir)
    is_run = run.config.is_file() and run.events.is_file()
    config = read_settings(run).config if is_run else Config()
    environment = local_environment()
    shutdown = float(environment[SHUTDOWN_VARIABLE])
    for warning in check_run(config, run, Surroundings(shutdown=shutdown, kill_wait=kill_wait())):
        say(f"warning: {warning}", stream=sys.stderr)
    words = words_of(options, DoctorOptions)
    num_ranks = options.nproc or num_gpus() or 1
    command = torchrun_command(num_ranks, 0, "pipeline.doctor", words)
    with subprocess.Popen(command, env=environment, process_group=0) as child:
        try:
            return min(1, abs(child.wait(DOCTOR_SECONDS)))
        except subprocess.TimeoutExpired:
            say(
                "error: the start of the ranks is stuck: they have not ended within "
                f"{DOCTOR_SECONDS:g} s, though each check has its deadline; is the file system "
                f"of {sys.prefix} at work?",
                stream=sys.stderr,
            )
            return 1
        finally:
            child.terminate()  # it ends its ranks
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_LEAVING_SECONDS)
            child.kill()
