"""`torchrun … -m pipeline.doctor`: checks, on every rank, what ruins runs.

Every rank collects facts of its host, the ranks gather them, and rank 0 prints one line a check. It
exits with 1 if one fails. `python -m launch doctor` starts it here, `launch slurm train --doctor`
on the nodes of a job.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

from data_prep.shard_set.options import read_options
from data_prep.shard_set.streams import exit_code_after_flush, open_streams, say
from pipeline.config.schema import DistributedConfig
from pipeline.config.timeouts import DOCTOR_LIMIT_SECONDS
from pipeline.doctor.checks import Check, checked, judge
from pipeline.doctor.deadlines import deadline
from pipeline.doctor.facts import collect
from pipeline.doctor.options import DoctorOptions
from pipeline.ranks.connect import connect
from pipeline.ranks.failure import exit_code_of, leave
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.world import World
from pipeline.run.console import Console
from pipeline.run.ending import ExitCode

_MAX_SKEW_SECONDS = 1.0
_PROBE_VALUES = 4 << 20


def measure_meeting(world: World) -> Check:
    """One reduction of ones over all ranks, and how long it takes."""
    values = torch.ones(_PROBE_VALUES, device=world.device)
    world.all_reduce(values)
    begin = time.perf_counter()
    world.all_reduce(values)
    total = float(values[0])
    seconds = time.perf_counter() - begin
    expected = float(world.size**2)
    return checked(
        "all-reduce",
        f"{values.nbytes / 1e6:.0f} MB over {world.size} ranks in {1e3 * seconds:.0f} ms",
        [] if total == expected else [f"it gives {total:g} instead of {expected:g}"],
    )


def measure_clocks(world: World, now: Callable[[], float] = time.time) -> Check:
    """How far the hosts' clocks are apart: the least of some tries."""
    skews = []
    for _ in range(5):
        world.all_gather_object(None)
        times = world.all_gather_object(now())
        skews.append(max(times) - min(times))
    skew = min(skews)
    wrong = [] if skew <= _MAX_SKEW_SECONDS else [f"{skew:.1f} s apart: set them by NTP"]
    return checked("clocks", f"at most {1e3 * skew:.0f} ms apart", wrong)


def examine(options: DoctorOptions) -> int:
    """Collect, meet and judge; returns the exit code. Raises `RankFailure` if ranks do not meet."""
    environment = LaunchEnvironment.read()
    config = DistributedConfig(
        device=options.device,
        timeout_seconds=DOCTOR_LIMIT_SECONDS,
        save_timeout_seconds=DOCTOR_LIMIT_SECONDS,
    )
    with connect(environment, config) as world:
        with deadline("the gathering of the answers"):
            with world.fail_together():
                own = collect(environment, world.device, options)
            facts = world.all_gather_object(own)
        checks = judge(facts, options.decode_threads)
        with deadline("all-reduce"):
            checks.insert(1, measure_meeting(world))
        with deadline("clocks"):
            checks.insert(2, measure_clocks(world))
    num_wrong = sum(not check.is_right for check in checks)
    if environment.rank == 0:
        console = Console(sys.stdout)
        for check in checks:
            console.line(f"{'ok  ' if check.is_right else 'FAIL'}  {check.title}: {check.text}")
        if num_wrong:
            say(f"error: {num_wrong} of {len(checks)} checks failed", stream=sys.stderr)
    return ExitCode.FAILED if num_wrong else ExitCode.DONE


if __name__ == "__main__":
    open_streams()
    asked = read_options("pipeline.doctor", DoctorOptions, None)
    leave(exit_code_after_flush(exit_code_of(lambda: examine(asked))))
