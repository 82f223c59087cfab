"""Puts together what training works with, once it is known that the run may begin."""

from __future__ import annotations

import contextlib
import dataclasses
from functools import partial
from typing import TYPE_CHECKING

import torch

from pipeline.config.schema import Config
from pipeline.data.open import (
    BatchPlan,
    Data,
    EvaluatedSplit,
    ImageSize,
    OpenBatches,
    num_steps,
)
from pipeline.metrics.job import JobMetrics
from pipeline.model.build import build_model
from pipeline.model.network import Network
from pipeline.optim.memory import bytes_of_training
from pipeline.optim.precision import type_of
from pipeline.optim.replica import Replica
from pipeline.ranks.mesh import Mesh, build_mesh
from pipeline.ranks.watchdog import Watchdog
from pipeline.ranks.world import World
from pipeline.run import checkpoint
from pipeline.run.dataset import Dataset, write_dataset
from pipeline.run.directory import RunDirectory
from pipeline.run.settings import Settings
from pipeline.train.batch_norm import check_micro_batches, least_values
from pipeline.train.clock import StartClock, StepClock
from pipeline.train.command import Command
from pipeline.train.components import Components
from pipeline.train.due import Eta
from pipeline.train.initial import load_given
from pipeline.train.journal import Journal
from pipeline.train.provenance import write_settings
from pipeline.train.publishing import publishing
from pipeline.train.start import Start, begin, find_start, finish, record_start
from pipeline.train.survival import Memory, Survivors

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


def build(
    command: Command,
    settings: Settings,
    data: Data,
    world: World,
    memory: Memory,
    resources: contextlib.ExitStack,
) -> Components | int:
    """Open the images, build the network and go to where the run begins; see `prepare`."""
    config, run, manifest, start_clock = settings.config, command.run, data.manifest, StartClock()
    mesh = build_mesh(world, config.model.columns, config.distributed.timeout_seconds)
    with world.fail_together():
        plan = data.plan(mesh.num_replicas)
        target_steps = num_steps(config.epochs, plan.steps_per_epoch)
        if world.is_main:
            write_dataset(run.path, _dataset_of(data))
    start = find_start(run, command.fork_from, world, Survivors.find(memory, run, world, mesh))
    end_step = min(command.max_steps or target_steps, target_steps)
    if start.path is not None and checkpoint.step_of(start.path) >= end_step:
        return finish(run, start.path, world, plan, target_steps)
    record_start(run, start, plan, world)
    with world.fail_together():
        size, normalizer = data.input_size(), data.normalizer()
        val = data.open_evaluation("val", config.evaluation.views, normalizer)
        model = _fresh_model(data, size, mesh)
        check_micro_batches(plan, target_steps, least_values(model, size))
    settings = _with_origin(settings, start, model, data, world, mesh)
    batches, val = _open_images(data, plan, val, world, mesh)
    start_clock.lap("loading")
    registry, metrics = resources.enter_context(publishing(config.metrics, run, world))
    replica = _warm_replica(model, plan, size, config, world, mesh, start_clock)
    going_on = plan, target_steps, run, world, memory
    progress = begin(start, replica, settings, manifest.num_classes, *going_on)
    start_clock.lap("loading")
    with world.fail_together():
        if world.is_main:
            write_settings(run, settings, world)
    watched = world, mesh, run, config.distributed
    return Components(
        start=start,
        start_clock=start_clock,
        settings=settings,
        manifest=manifest,
        plan=plan,
        target_steps=target_steps,
        end_step=end_step,
        run=run,
        world=world,
        mesh=mesh,
        replica=replica,
        augmenter=data.augmenter(normalizer, type_of(config.resolved_precision)),
        open_batches=batches,
        val=val,
        progress=progress,
        journal=_journal(run, registry, world, plan, Eta(config, plan, target_steps)),
        metrics=metrics,
        memory=memory,
        clock=StepClock(world.device),
        watchdog=Watchdog(*watched, is_resident=config.data.is_resident),
    )


def _journal(
    run: RunDirectory, registry: CollectorRegistry | None, world: World, plan: BatchPlan, eta: Eta
) -> Journal:
    """Rank 0's has the metrics of the job."""
    metrics = JobMetrics(registry if world.is_main else None)
    return Journal.of_rank(world.rank, run, metrics, plan, eta)


def _with_origin(
    settings: Settings, start: Start, model: Network, data: Data, world: World, mesh: Mesh
) -> Settings:
    """Give a fresh `model` the weights that are asked for, and note where they are from."""
    begun = start.initialized_from
    if start.is_fresh and data.config.init.weights:
        begun = load_given(model, data.config, data.manifest.class_names, world, mesh)
    return dataclasses.replace(settings, forked_from=start.forked_from, initialized_from=begun)


def _open_images(
    data: Data, plan: BatchPlan, val: EvaluatedSplit, world: World, mesh: Mesh
) -> tuple[OpenBatches, EvaluatedSplit]:
    """The splits to train on and to evaluate; where they are resident, memory is filled."""
    config, num_classes = data.config, data.manifest.num_classes
    besides = partial(bytes_of_training, config, num_classes, plan.local_batch_size)
    batches = data.open_batches(plan, world, mesh, besides)
    return batches, val.resident(world, mesh) if config.data.is_resident else val


def _fresh_model(data: Data, size: ImageSize, mesh: Mesh) -> Network:
    """The network of the run before it has learned anything."""
    config = data.config
    torch.manual_seed(config.seed)
    model = build_model(config.model, data.manifest.num_classes, size, mesh.columns)
    model.freeze(config.init.freeze)
    return model


def _dataset_of(data: Data) -> Dataset:
    return Dataset.of_shards(
        *(data.shards.folder, data.manifest, data.manifest_sha256),
        with_mean_image=data.config.augment.subtracts_mean_image,
    )


def _warm_replica(
    model: Network,
    plan: BatchPlan,
    size: ImageSize,
    config: Config,
    world: World,
    mesh: Mesh,
    start_clock: StartClock,
) -> Replica:
    """One that has done a step which left no trace."""
    replica = Replica(model, config, world, mesh)
    start_clock.lap("starting")
    shape, dtype = (plan.local_batch_size, 3, *size), type_of(config.resolved_precision)
    images = torch.zeros(shape, dtype=dtype, device=world.device).to(
        memory_format=torch.channels_last
    )
    zeros = torch.zeros(len(images), dtype=torch.int64, device=world.device)
    replica.warm_up(images, zeros, zeros)
    start_clock.lap("compiling")
    return replica
