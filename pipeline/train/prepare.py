"""From a command to everything that training works with, on every rank."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys

import torch

from data_prep.shard_set.manifest import Manifest
from pipeline.config.augment import IMAGE_SIZES, ONE_SIZE, SEVERAL_SIZES
from pipeline.config.command_line import check_effects
from pipeline.config.marks import PerHost
from pipeline.config.saved import to_json
from pipeline.config.schema import FIELDS, Config, values_of
from pipeline.data.open import BatchPlan, Data, open_data
from pipeline.model.build import build_model
from pipeline.optim.precision import arithmetic_of, emulation, resolve
from pipeline.optim.replica import Replica
from pipeline.ranks.mesh import build_mesh, check_layout
from pipeline.ranks.watchdog import Watchdog
from pipeline.ranks.world import World
from pipeline.run import checkpoint
from pipeline.run.console import Console
from pipeline.run.directory import RunDirectory
from pipeline.run.settings import Settings
from pipeline.train.batch_norm import check_micro_batches, least_values
from pipeline.train.clock import StepClock
from pipeline.train.command import Command
from pipeline.train.components import Components
from pipeline.train.eta import Eta
from pipeline.train.fork import NewRun, fork
from pipeline.train.journal import Journal
from pipeline.train.length import num_steps_of_run
from pipeline.train.open_run import open_run, recording_failures
from pipeline.train.progress import Progress
from pipeline.train.provenance import write_settings
from pipeline.train.publishing import publish
from pipeline.train.resume import Start, find_start, finish, resume
from pipeline.train.same_run import check_same_run, kept_precision


def prepare(
    command: Command, world: World, resources: contextlib.ExitStack
) -> tuple[Components, Start] | int:
    """Check and open everything, and go to where the run begins.

    Returns the number of steps done if there is nothing to do: then nothing large was opened.
    What can be wrong on one rank alone is done together; then nobody waits for a rank that left.
    """
    config, run = command.config, command.run
    _set_threads(world)
    world.check_same_on_all_ranks(_of_all_hosts(command))
    with world.fail_together():
        check_layout(config.model.columns, world.size)
        if world.is_main:
            open_run(run, world.environment, config.distributed.save_timeout_seconds, resources)
    config = _with_precision(config, run, world)
    with recording_failures(run, world):
        with world.fail_together():
            data = open_data(config, world.device, resources)
            _check_suits(command, data.manifest)
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
        return _build(command, settings, data, world, resources)


def _check_suits(command: Command, manifest: Manifest) -> None:
    """Raise `ValueError` if an option that was given has no effect on these shards."""
    sizes = SEVERAL_SIZES if manifest.image_size is None else ONE_SIZE
    check_effects(sorted(command.given), values_of(command.config) | {IMAGE_SIZES: sizes})


def _with_precision(config: Config, run: RunDirectory, world: World) -> Config:
    """Decide on `auto` for all ranks together, or keep what the run in the directory has."""
    kept = None
    with world.fail_together():
        if world.is_main:
            kept = kept_precision(run)
    kept, devices = (
        world.broadcast_object(kept),
        world.all_gather_object(arithmetic_of(world.device)),
    )
    with world.fail_together():
        config = resolve(config, kept, devices)
    warning = emulation(config.resolved_precision, devices)
    if warning is not None and world.is_main:
        Console(sys.stdout).line(f"warning: {warning}")
    return config


def _build(
    command: Command,
    settings: Settings,
    data: Data,
    world: World,
    resources: contextlib.ExitStack,
) -> tuple[Components, Start] | int:
    config, run, num_classes = settings.config, command.run, data.manifest.num_classes
    mesh = build_mesh(world, config.model.columns, config.distributed.timeout_seconds)
    with world.fail_together():
        plan = data.plan(mesh.num_replicas)
        target_steps = num_steps_of_run(config.epochs, plan.steps_per_epoch)
    start = find_start(run, command.fork_from, world)
    end_step = min(command.max_steps or target_steps, target_steps)
    if start.path is not None and checkpoint.step_of(start.path) >= end_step:
        return finish(
            run,
            start.path,
            world,
            steps_per_epoch=plan.steps_per_epoch,
            target_steps=target_steps,
        )
    settings = dataclasses.replace(settings, forked_from=start.forked_from)
    with world.fail_together():
        size, normalizer = data.input_size(), data.normalizer()
        val = data.open_evaluation("val", config.evaluation.views, normalizer)
        torch.manual_seed(config.seed)
        model = build_model(config.model, num_classes, size, mesh.columns)
        check_micro_batches(plan, target_steps, least_values(model, size))
    batches = data.open_batches(plan, world, mesh)
    registry, metrics = publish(config.metrics, run, world, resources)
    replica = Replica(model, config, world, mesh)
    _warm_up(replica, plan, size, world)
    progress = _progress(start, replica, settings, num_classes, plan, target_steps, run, world)
    with world.fail_together():
        if world.is_main:
            write_settings(run, settings, world)
    components = Components(
        settings=settings,
        manifest=data.manifest,
        plan=plan,
        target_steps=target_steps,
        end_step=end_step,
        run=run,
        world=world,
        mesh=mesh,
        replica=replica,
        augmenter=data.augmenter(normalizer),
        open_batches=batches,
        val=val,
        progress=progress,
        journal=Journal.of_rank(world.rank, run, registry, plan, _eta(config, plan, target_steps)),
        metrics=metrics,
        clock=StepClock(world.device),
        watchdog=Watchdog(
            world, mesh, run, config.distributed, is_resident=config.data.is_resident
        ),
    )
    return components, start


def _progress(
    start: Start,
    replica: Replica,
    settings: Settings,
    num_classes: int,
    plan: BatchPlan,
    target_steps: int,
    run: RunDirectory,
    world: World,
) -> Progress:
    """Give the replica the weights that the run begins with."""
    if start.path is not None:
        return resume(replica, settings, run, world, start.path)
    if start.fork is None:
        return Progress()
    new_run = NewRun(
        config=to_json(settings.config),
        optim=settings.config.optim,
        manifest_sha256=settings.manifest_sha256,
        num_classes=num_classes,
        steps_per_epoch=plan.steps_per_epoch,
        target_steps=target_steps,
    )
    return fork(replica, start.fork, new_run, world)


def _eta(config: Config, plan: BatchPlan, target_steps: int) -> Eta:
    return Eta(
        steps_per_epoch=plan.steps_per_epoch,
        target_steps=target_steps,
        evaluation_epochs=config.evaluation.every_epochs,
        checkpoint_epochs=config.checkpoint.every_epochs,
    )


def _of_all_hosts(command: Command) -> dict[str, object]:
    """What decides what the ranks compute and when they talk: they must agree on it."""
    values = values_of(command.config).items()
    shared = {name: value for name, value in values if PerHost not in FIELDS[name].marks}
    source = None if command.fork_from is None else str(command.fork_from)
    options = {"--max-steps": command.max_steps, "--fork-from": source}
    return {"the recipe": command.recipe, **options, **shared}


def _set_threads(world: World) -> None:
    """Divide the host's cores among its ranks; torchrun would leave each with one."""
    if world.device.type == "cpu":
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // world.environment.local_world_size))


def _warm_up(replica: Replica, plan: BatchPlan, size: tuple[int, int], world: World) -> None:
    shape = (plan.local_batch_size, 3, *size)
    images = torch.zeros(shape, device=world.device).to(memory_format=torch.channels_last)
    zeros = torch.zeros(len(images), dtype=torch.int64, device=world.device)
    replica.warm_up(images, zeros, zeros)
