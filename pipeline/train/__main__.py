"""Trains a recipe on a shard set, on one process or many.

    torchrun --nproc_per_node=N -m pipeline.train RECIPE --data.shards SHARDS --run-dir RUN
        [--max-steps N] [--any.field value]

The same command again goes on from the newest good checkpoint of RUN. It exits with 0 when all that
was asked for is done, with 75 when it was stopped before (SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2
or a file RUN/STOP) and can go on, and with 1 when it failed. Under torchrun's --max-restarts it
exits with 0 when it was stopped, too: torchrun would undo the stop.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from data_prep.shard_set.files import as_command
from data_prep.shard_set.streams import open_streams, say
from pipeline.data.open import constancy
from pipeline.ranks.connect import connect, failure_of_all
from pipeline.ranks.failure import RankFailure, exit_code_of, leave
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.stop import StopRequests, StopSignals
from pipeline.ranks.supervisor import supervise
from pipeline.ranks.world import World
from pipeline.run import checkpoint
from pipeline.run.console import Console, counted
from pipeline.run.ending import EndOutcome, ExitCode
from pipeline.run.events import RunEvent
from pipeline.train.command import Command, asks_for_help, help_text, parse_command
from pipeline.train.components import Components
from pipeline.train.initial import sentence_of
from pipeline.train.journal import resolved_table
from pipeline.train.loop import TrainingLoop
from pipeline.train.prepare import prepare
from pipeline.train.provenance import git_revision, package_version
from pipeline.train.survival import Memory


def run_rank(
    environment: LaunchEnvironment, command: Command, signals: StopSignals | None = None
) -> int:
    """One rank, from where the ranks meet to its exit code. Raises `RankFailure`.

    Under a supervisor it may meet them several times, and keeps what it has in memory.
    """
    signals, memory = signals or StopSignals(), Memory()
    while True:
        try:
            with connect(environment, command.config.distributed) as world:
                return train(command, world, signals, memory)
        except RankFailure as failure:
            if memory.held is None or not failure.is_of_others:
                raise
            if failure.is_reported_here:
                say(f"warning: {failure}; this rank goes on with what it has", stream=sys.stderr)
            environment = replace(environment, began=time.time())
        memory.detach()
        gc.collect()  # else the threads and connections of the broken groups stay


def train(command: Command, world: World, signals: StopSignals, memory: Memory) -> int:
    """Run the command on this rank; returns the exit code. Raises `RankFailure`.

    Then `memory` has what this rank can go on from together with others.
    """
    for sentence in command.locations if world.is_main and not world.generation else ():
        Console(sys.stdout).line(sentence)
    with contextlib.ExitStack() as resources:
        prepared = prepare(command, world, memory, resources)
        if isinstance(prepared, int):
            if world.is_main:
                Console(sys.stdout).line(f"nothing to do: {prepared:,} steps are done")
            return ExitCode.DONE
        components = prepared
        progress, journal = components.progress, components.journal
        stops = StopRequests(world, command.run, signals)
        _announce(components)
        loop = TrainingLoop(components)
        try:
            with components.watchdog:
                loop.run(stops)
        except Exception as error:
            failure = error if isinstance(error, RankFailure) else world.report_failure(error)
            loop.saves.finish()
            journal.ended(progress.step, "failed", failure)
            if failure is error:
                raise
            raise failure from error
        is_complete = progress.step == components.target_steps
        outcome: EndOutcome = "completed" if is_complete else "stopped"
        journal.ended(progress.step, outcome)
        components.metrics.record_outcome(outcome)
        # The first rank to leave ends all: rank 0 must have written its last event before.
        world.all_gather_object(None)
        _conclude(components, is_complete=is_complete)
        is_undone = world.environment.max_attempts and world.environment.supervisor is None
        is_done = progress.step == components.end_step
        return ExitCode.DONE if is_done or is_undone else ExitCode.STOPPED


def _announce(components: Components) -> None:
    """The first lines on the console and the `run` event."""
    config, plan, progress = components.config, components.plan, components.progress
    start = components.start
    event = RunEvent(
        step=progress.step,
        epoch=components.epoch,
        resumed_from=None if start.step is None else progress.step,
        forked_from=None if start.fork is None else str(start.fork),
        kept_by=None if start.survivors is None else start.survivors.rank,
        world_size=components.world.size,
        local_batch_size=plan.local_batch_size,
        accumulation_steps=plan.accumulation_steps,
        global_batch_size=plan.global_batch_size,
        steps_per_epoch=plan.steps_per_epoch,
        target_steps=components.target_steps,
        device=components.world.device.type,
        precision=config.resolved_precision,
        num_train_samples=plan.num_samples,
        num_val_samples=components.val.num_samples,
        shard_set=components.manifest.title,
        loading_seconds=components.start_clock.seconds["loading"],
        compiling_seconds=components.start_clock.seconds["compiling"],
    )
    console = components.journal.console
    if event.kept_by is not None:
        console.line(f"going on after step {progress.step:,}, which rank {event.kept_by} has kept")
        components.journal.started(progress, event, config.epochs, *_labels(components))
        return
    console.line(f"{components.settings.recipe} → {components.run.path}")
    console.table(resolved_table(config, plan, event))
    constant = constancy(config.augment, components.manifest.statistics)
    if constant is not None:
        console.line(f"warning: {constant}")
    if start.path is not None:
        console.line(f"resumed from {start.path}")
    if start.fork is not None:
        console.line(f"forked from {start.fork}, after epoch {event.epoch:g}")
    begun = components.settings.initialized_from
    if begun is not None and start.is_fresh:
        console.line(sentence_of(begun))
    components.journal.started(progress, event, config.epochs, *_labels(components))


def _conclude(components: Components, *, is_complete: bool) -> None:
    """The last lines on the console: how it ended, and where everything is."""
    console, progress, run = components.journal.console, components.progress, components.run
    if is_complete:
        end = f"done, {progress.step:,} steps"
    elif progress.step == components.end_step:
        steps = counted(progress.step, "step")
        end = f"done so far, {steps}: without --max-steps the command goes on"
    else:
        end = f"stopped after step {progress.step:,}; the same command goes on from there"
    best = progress.best_top1
    console.line(end if best is None else f"{end}; best val top-1 {best:.2%}")
    table = {"checkpoint": str(checkpoint.path_of(run.checkpoints, progress.step))}
    if components.config.metrics.enabled:
        table["metrics"] = str(run.metrics)
    console.table(table | {"report": as_command("python", "-m", "pipeline.report", run.path)})


def _labels(components: Components) -> tuple[dict[str, str], dict[str, str]]:
    """Of the metrics `build_info` and `run_info`: what computes, and what is computed."""
    settings, device = components.settings, components.world.device
    build = {
        "version": package_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
    }
    run = {
        "recipe": settings.recipe,
        "model": settings.config.model.name,
        "columns": settings.config.model.columns,
        "precision": settings.config.resolved_precision,
        "dataset": components.manifest.title,
        "manifest_sha8": settings.manifest_sha256[:8],
        "git_revision": (components.world.is_main and git_revision()) or "",
        "gpu_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "",
    }
    return build, run


def _import_what_ranks_need() -> None:
    """What a rank imports when it is needed first, which would take it more than a second."""
    for name in ("torch._dynamo", "numba", "prometheus_client"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _run(environment: LaunchEnvironment, command: Command) -> int:
    """Run a rank in a process of its own."""
    return exit_code_of(partial(run_rank, environment, command))


def main(arguments: Sequence[str] | None = None) -> int:
    logging.basicConfig(format="%(levelname)s: %(message)s")
    words = sys.argv[1:] if arguments is None else arguments
    if asks_for_help(words):
        say(*help_text(words).splitlines())
        return 0
    signals = StopSignals()

    def body() -> int:
        environment = LaunchEnvironment.read()
        try:
            command = parse_command(words)
        except ValueError as error:
            raise failure_of_all(environment, error) from None
        distributed = command.config.distributed
        if not distributed.warm_restarts or not environment.is_launched:
            return run_rank(environment, command, signals)
        _import_what_ranks_need()
        return supervise(environment, distributed, partial(_run, command=command), signals)

    code = exit_code_of(body)
    signals.ignore()
    return code


if __name__ == "__main__":
    open_streams()
    leave(main())
