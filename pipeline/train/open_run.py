"""Makes and locks the run directory; what fails before the run has a journal is its last event."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from data_prep.shard_set.files import remove_leftovers
from pipeline.ranks.failure import RankFailure
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.stop import remove_old_request
from pipeline.ranks.world import World
from pipeline.run import checkpoint
from pipeline.run.console import Console
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import check_readable, write_failure
from pipeline.run.lock import lock_run


def open_run(
    run: RunDirectory,
    environment: LaunchEnvironment,
    wait_seconds: float,
    resources: contextlib.ExitStack,
) -> None:
    """Make the run directory, lock it, and clear away what a killed job left."""
    with run.being_made():
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        resources.callback(
            os.close, lock_run(run, environment.start, wait_seconds, environment.log)
        )
    check_readable(run.events)
    checkpoint.remove_leftovers(run.checkpoints)
    remove_leftovers(run.path, {run.config.name})
    remove_leftovers(run.predictions("val").parent)
    if remove_old_request(run, environment):
        Console(sys.stdout).line(f"removed {run.stop_request}: it is older than this job")


@contextlib.contextmanager
def recording_failures(run: RunDirectory, world: World) -> Iterator[None]:
    """Let what fails in the block be the last event of the run: it has no journal yet."""
    try:
        yield
    except Exception as error:
        failure = error if isinstance(error, RankFailure) else world.report_failure(error)
        if world.is_main:
            with contextlib.suppress(OSError):
                write_failure(run.events, str(failure), failure.cause)
        if failure is error:
            raise
        raise failure from error
