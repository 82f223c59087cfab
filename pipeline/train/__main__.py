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
import logging
import sys
from collections.abc import Sequence
from typing import Literal

import torch

from data_prep.shard_set.streams import open_streams
from pipeline.data.augment.normalize import constancy
from pipeline.metrics.run_facts import RunFacts
from pipeline.ranks.failure import exit_code_of, leave
from pipeline.ranks.launcher import Place
from pipeline.ranks.stop import StopRequests, StopSignals
from pipeline.ranks.world import World, connect, failure_of_all
from pipeline.run import checkpoint
from pipeline.run.console import Console
from pipeline.run.ending import STOPPED
from pipeline.train.command import Command, asks_for_help, help_text, parse_command
from pipeline.train.lines import resolved_table
from pipeline.train.loop import Parts, TrainingLoop
from pipeline.train.prepare import prepare
from pipeline.train.provenance import git_revision, package_version
from pipeline.train.resume import Start


def train(command: Command, world: World, signals: StopSignals) -> int:
    """Run the command on this rank; returns the exit code. Raises `RankFailure`."""
    for sentence in command.locations if world.is_main else ():
        Console(sys.stdout).line(sentence)
    with contextlib.ExitStack() as resources:
        prepared = prepare(command, world, resources)
        if isinstance(prepared, int):
            if world.is_main:
                Console(sys.stdout).line(f"nothing to do: {prepared:,} steps are done")
            return 0
        parts, start = prepared
        progress, journal = parts.progress, parts.journal
        stops = StopRequests(world, command.run, signals)
        _announce(parts, start)
        try:
            with parts.watchdog:
                TrainingLoop(parts).run(stops)
        except Exception as error:
            failure = world.report_failure(error)
            journal.ended(progress.step, "failed", str(failure))
            raise failure from error
        is_complete = progress.step == parts.target_steps
        outcome: Literal["completed", "stopped"] = "completed" if is_complete else "stopped"
        journal.ended(progress.step, outcome)
        parts.metrics.record_outcome(outcome)
        world.gather(None)  # the first rank to leave ends all: rank 0 shall have had its last word
        _conclude(parts, is_complete=is_complete)
        is_done = progress.step == parts.end_step
        return 0 if is_done or world.place.max_attempts else STOPPED


def _announce(parts: Parts, start: Start) -> None:
    """The first lines on the console and the `run` event."""
    config, plan, progress = parts.settings.config, parts.plan, parts.progress
    row = {
        "resumed_from": None if start.path is None else progress.step,
        "forked_from": None if start.fork is None else str(start.fork),
        "world_size": parts.world.size,
        "local_batch_size": plan.local_batch_size,
        "accumulation_steps": plan.accumulation_steps,
        "global_batch_size": plan.global_batch_size,
        "steps_per_epoch": plan.steps_per_epoch,
        "target_steps": parts.target_steps,
        "device": parts.world.device.type,
        "precision": config.resolved_precision,
        "num_train_samples": plan.num_samples,
        "num_val_samples": parts.val_reader.num_samples,
        "shard_set": parts.manifest.title,
    }
    console = parts.journal.console
    console.line(f"{parts.settings.recipe} → {parts.run.path}")
    console.table(
        resolved_table(
            config,
            plan,
            num_val_samples=parts.val_reader.num_samples,
            target_steps=parts.target_steps,
            num_ranks=parts.world.size,
            device=parts.world.device.type,
        )
    )
    constant = constancy(config.augment, parts.manifest.statistics)
    if constant is not None:
        console.line(f"warning: {constant}")
    if start.path is not None:
        console.line(f"resumed from {start.path}")
    if start.fork is not None:
        console.line(
            f"forked from {start.fork}, after epoch {progress.step / plan.steps_per_epoch:g}"
        )
    parts.journal.started(progress, _facts(parts), row)


def _conclude(parts: Parts, *, is_complete: bool) -> None:
    """The last lines on the console: how it ended, and where everything is."""
    console, progress, run = parts.journal.console, parts.progress, parts.run
    if is_complete:
        end = f"done, {progress.step:,} steps"
    else:
        end = f"stopped after step {progress.step:,}; the same command goes on from there"
    best = progress.best_top1
    console.line(end if best is None else f"{end}; best val top-1 {best:.2%}")
    table = {"checkpoint": str(checkpoint.path_of(run.checkpoints, progress.step))}
    if parts.config.metrics.enabled:
        table["metrics"] = str(run.metrics)
    console.table(table | {"report": f"python -m pipeline.report {run.path}"})


def _facts(parts: Parts) -> RunFacts:
    is_cuda = parts.world.device.type == "cuda"
    config = parts.settings.config
    return RunFacts(
        version=package_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda or "",
        gpu_name=torch.cuda.get_device_name(parts.world.device) if is_cuda else "",
        recipe=parts.settings.recipe,
        model=config.model.name,
        columns=config.model.columns,
        precision=config.resolved_precision,
        dataset=parts.manifest.title,
        manifest_sha8=parts.settings.manifest_sha256[:8],
        git_revision=(parts.world.is_main and git_revision()) or "",
        steps_per_epoch=parts.plan.steps_per_epoch,
        target_epochs=config.epochs,
        global_batch_size=parts.plan.global_batch_size,
        world_size=parts.world.size,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    logging.basicConfig(format="%(levelname)s: %(message)s")
    words = sys.argv[1:] if arguments is None else arguments
    if asks_for_help(words):
        Console(sys.stdout).line(help_text(words))
        return 0
    signals = StopSignals()

    def body() -> int:
        place = Place.from_environment()
        try:
            command = parse_command(words)
        except ValueError as error:
            raise failure_of_all(place, error) from None
        with connect(place, command.config.distributed) as world:
            return train(command, world, signals)

    code = exit_code_of(body)
    signals.ignore()
    return code


if __name__ == "__main__":
    open_streams()
    leave(main())
