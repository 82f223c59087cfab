"""From a command to everything that training works with, on every rank."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import torch

from data_prep.shard_set.files import remove_leftovers
from pipeline.config.augment import IMAGE_SIZES, ONE_SIZE, SEVERAL_SIZES
from pipeline.config.command_line import check_effects
from pipeline.config.marks import PerHost
from pipeline.config.order import Surroundings
from pipeline.config.schema import FIELDS, Config, values_of
from pipeline.data.open import (
    open_data,
)
from pipeline.model.response_norm import check_compiler, missing_kernels
from pipeline.optim.precision import arithmetic_of, emulation, mixture, resolve
from pipeline.ranks.failure import RankFailure
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.mesh import check_layout
from pipeline.ranks.stop import begin_of_attempt, remove_old_request
from pipeline.ranks.world import World
from pipeline.run import checkpoint
from pipeline.run.console import Console
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import read_events, write_failure
from pipeline.run.lock import lock_run
from pipeline.run.measured import check_run
from pipeline.run.settings import Settings
from pipeline.train.assembly import build
from pipeline.train.command import Command
from pipeline.train.components import Components
from pipeline.train.same_run import check_same_run, kept_precision
from pipeline.train.survival import Memory


def prepare(
    command: Command, world: World, memory: Memory, resources: contextlib.ExitStack
) -> Components | int:
    """Check and open everything, and go to where the run begins.

    Returns the number of steps done if there is nothing to do: then nothing large was opened.
    What can fail on one rank alone fails on all together, so that no rank waits for one that left.
    """
    config, run = command.config, command.run
    _set_threads(world)
    world.check_same_on_all_ranks(_of_all_hosts(command))
    with world.fail_together():
        check_layout(config.model.columns, world.size)
        if world.is_main:
            open_run(run, world.environment, config.distributed.save_timeout_seconds, resources)
            _check_waits(config, run, world.environment)
    config = _with_precision(config, run, world)
    with recording_failures(run, world):
        with world.fail_together():
            data = open_data(config, world.device, resources)
            # An option that was given may have no effect on these shards.
            sizes = SEVERAL_SIZES if data.manifest.image_size is None else ONE_SIZE
            check_effects(sorted(command.given), values_of(command.config) | {IMAGE_SIZES: sizes})
            settings = Settings(
                recipe=command.recipe, config=config, manifest_sha256=data.manifest_sha256
            )
        world.check_same_on_all_ranks({"the hash of the manifest": settings.manifest_sha256})
    with world.fail_together():
        check_same_run(
            run,
            settings,
            num_samples=data.manifest.split("train").num_samples,
            fork_from=None if command.fork_from is None else str(command.fork_from),
        )
    with recording_failures(run, world):
        return build(command, settings, data, world, memory, resources)


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
    read_events(run.events)  # refuses those of a newer version
    checkpoint.remove_leftovers(run.checkpoints)
    remove_leftovers(run.path, {run.config.name, run.data.name, run.mean_image.name})
    remove_leftovers(run.predictions("val").parent)
    if remove_old_request(run, environment):
        Console(sys.stdout).line(f"removed {run.stop_request}: it is older than this job")


@contextlib.contextmanager
def recording_failures(run: RunDirectory, world: World) -> Iterator[None]:
    """Make a failure in the block the last event of the run, which has no journal yet."""
    try:
        yield
    except Exception as error:
        failure = error if isinstance(error, RankFailure) else world.report_failure(error)
        if world.is_main:
            with contextlib.suppress(OSError):
                began = begin_of_attempt(world.environment)
                write_failure(run.events, str(failure), failure.cause, began)
        if failure is error:
            raise
        raise failure from error


def _check_waits(config: Config, run: RunDirectory, environment: LaunchEnvironment) -> None:
    """Warn of waits that contradict each other, or raise `ValueError`.

    A job that is started again goes on all the same: one slow save is no reason to end it.
    """
    try:
        warnings = check_run(config, run, Surroundings(shutdown=environment.shutdown_seconds))
    except ValueError as error:
        if not environment.is_restart:
            raise
        warnings = [str(error)]
    for warning in warnings:
        Console(sys.stdout).line(f"warning: {warning}")


def _with_precision(config: Config, run: RunDirectory, world: World) -> Config:
    """Decide on `auto` for all ranks together, or keep what the run in the directory has."""
    kept = None
    with world.fail_together():
        if world.is_main:
            kept = kept_precision(run)
    kept = world.broadcast_object(kept)
    devices = world.all_gather_object(arithmetic_of(world.device))
    with world.fail_together():
        config = resolve(config, kept, devices)
        check_compiler(config.compile, world.device)
    precision = config.resolved_precision
    warnings = emulation(precision, devices), mixture(devices), missing_kernels(world.device)
    for warning in filter(None, warnings):
        if world.is_main:
            Console(sys.stdout).line(f"warning: {warning}")
    return config


def _of_all_hosts(command: Command) -> dict[str, object]:
    """What the ranks must agree on: it decides what they compute, and when they talk."""
    values = values_of(command.config).items()
    shared = {name: value for name, value in values if PerHost not in FIELDS[name].marks}
    options = {"--max-steps": command.max_steps, "--fork-from": command.fork_from}
    return {"the recipe": command.recipe, **options, **shared}


def _set_threads(world: World) -> None:
    """Divide the host's cores among its ranks; torchrun would leave each with one."""
    if world.device.type == "cpu":
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // world.environment.local_world_size))
