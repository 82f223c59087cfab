"""How the ranks of a job meet: the device of each, their store and their process groups.

Two groups: the default one (NCCL on GPUs, gloo elsewhere) carries tensors in training, and its
deadline is short. The control group (always gloo) carries small Python values; what rank 0 does
alone, such as saving, is waited for there, under a deadline of its own.
"""

from __future__ import annotations

import contextlib
import datetime
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, assert_never

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import (
    PrefixStore,
    Store,
    _abort_process_group,
    _world,
)

from pipeline.config.schema import DistributedConfig
from pipeline.config.timeouts import collective_seconds, rendezvous_seconds
from pipeline.ranks.failure import RankFailure, fact_of
from pipeline.ranks.generations import Generations, store_of_generation
from pipeline.ranks.gpus import driver_fault
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.memory import keep_freed_memory
from pipeline.ranks.stores import host_store, join_store
from pipeline.ranks.world import World
from pipeline.run.console import counted
from pipeline.run.ending import handled_signals


@contextlib.contextmanager
def connect(environment: LaunchEnvironment, config: DistributedConfig) -> Iterator[World]:
    """Join the job's process groups for the length of the block.

    Raises `RankFailure` if some rank lacks the device asked for or that the others have, or if the
    ranks do not find each other before the deadline.
    """
    device, fault = torch.device("cpu"), None
    try:
        device = _device(environment, config)
    except ValueError as error:
        fault = error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32: cuDNN would round convolutions' inputs
    world = World(environment=environment, device=device, store=None, control=None)
    if environment.is_launched:
        with killable(), finding_ranks(rendezvous_seconds(config.timeout_seconds)):
            world, fault = _meet(world, config, fault)
    try:
        with world.fail_together():
            if fault is not None:
                raise fault
        yield world
    except Exception as error:
        failure = error if isinstance(error, RankFailure) else world.report_failure(error)
        # The groups stay as they are: a rank that failed must leave at once, so others notice. One
        # that may stay must break off what others wait for.
        if environment.supervisor is not None:
            _break_off(world)
        if failure is error:
            raise
        raise failure from error
    if environment.is_launched:
        dist.destroy_process_group()


def collective_deadline(limit_seconds: float) -> datetime.timedelta:
    """For a process group in whose collectives a rank may wait `limit_seconds`."""
    return datetime.timedelta(seconds=collective_seconds(limit_seconds))


@contextlib.contextmanager
def killable() -> Iterator[None]:
    """Let signals end this process at once: no handler runs while it waits for other ranks."""
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in handled_signals()}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def finding_ranks(timeout_seconds: float) -> Iterator[None]:
    """Raise `RankFailure` if the block, which waits so long for the other ranks, fails."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise RankFailure(
            f"the ranks did not find each other within {timeout_seconds:g} s "
            f"({fact_of(error)}); start all of them with one torchrun command a node",
            is_reported_here=True,
        ) from None


def store_of_attempt(environment: LaunchEnvironment, timeout_seconds: float) -> Store:
    """Where the ranks of this attempt of the launcher meet: see `finding_ranks` for what fails."""
    is_here = environment.hosts_store and environment.supervisor is None
    everything = (host_store if is_here else join_store)(environment.rendezvous, timeout_seconds)
    # In one store for all attempts an earlier one's addresses are those of dead ranks, and its
    # failure is not this one's. A new store needs no number, and hosts may differ in theirs.
    attempt = environment.attempt if environment.is_store_kept else "new"
    return PrefixStore(f"alexnet/{attempt}", everything)


def _meet(
    alone: World, config: DistributedConfig, fault: ValueError | None
) -> tuple[World, ValueError | None]:
    """Meet the other ranks, and make the groups; see `_join`."""
    environment, seconds = alone.environment, rendezvous_seconds(config.timeout_seconds)
    store = store_of_attempt(environment, seconds)
    if environment.supervisor is None:
        return _join(replace(alone, store=store), config, fault)
    generations = Generations(store, environment.world_size, config.warm_restarts)
    while True:
        generation = generations.meet(environment.rank, seconds)
        inner = store_of_generation(store, generation)
        world = replace(alone, store=inner, generations=generations, generation=generation)
        try:
            return _join(world, config, fault)
        except RuntimeError:  # another one was lost meanwhile
            _break_off(world)
            if not generations.may_follow(generation):
                raise


def _break_off(world: World) -> None:
    """Leave the groups, so that no rank waits for this one, and let the generation be over."""
    world.links.break_off()
    if dist.is_initialized():
        _abort_process_group()
    # One that has failed to begin counts, too, and the next one's name would be another one than
    # that of the ranks that are new.
    _world.group_count = 0
    if world.generations is not None:
        with contextlib.suppress(RuntimeError):  # the store is gone: the ranks do not meet again
            world.generations.end(world.generation)


def _join(
    world: World, config: DistributedConfig, fault: ValueError | None
) -> tuple[World, ValueError | None]:
    """Meet the other ranks in the store of `world`; returns it with groups, and this rank's fault.

    If not all ranks have a GPU, the device is a CPU: so they can still report the fault.
    """
    store, device, rank, world_size = world.store, world.device, world.rank, world.size
    assert store is not None
    kind = device.type if fault is None else "none"
    store.set(f"device/{rank}", kind)
    kinds = {store.get(f"device/{other}").decode() for other in range(world_size)}
    if kind == "cpu" and config.device == "auto" and "cuda" in kinds:
        fault = ValueError(
            f"{socket.gethostname()} finds no GPU, and other ranks have one each: call "
            "nvidia-smi there, leave that host out, or use --distributed.device cpu"
        )
    if kinds != {"cuda"}:
        device = torch.device("cpu")
    deadline = collective_deadline(config.save_timeout_seconds)
    with world.links.noted():
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore("default", store),
            rank=rank,
            world_size=world_size,
            timeout=collective_deadline(config.timeout_seconds),
            device_id=device if device.type == "cuda" else None,
        )
        control = dist.new_group(backend="gloo", timeout=deadline)
    unknown: Any = store  # torch does not type `clone`
    return replace(world, device=device, control=control, watchdog_store=unknown.clone()), fault


def failure_of_all(environment: LaunchEnvironment, error: ValueError) -> RankFailure:
    """What every rank raises for an `error` that all of them find before they connect.

    The ranks meet first: one that left at once could make torchrun end rank 0 before its report.
    """
    with connect(environment, DistributedConfig(device="cpu")) as world:
        world.all_gather_object(None)
    return RankFailure(str(error), is_reported_here=world.is_main)


def _device(environment: LaunchEnvironment, config: DistributedConfig) -> torch.device:
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    fault = driver_fault()
    match config.device:
        case "cpu":
            return torch.device("cpu")
        case "auto":
            if num_gpus == 0 and fault is None:
                return torch.device("cpu")
        case "cuda":
            pass
        case unknown:
            assert_never(unknown)
    if fault is not None:
        raise ValueError(f"{socket.gethostname()}: {fault}, or use --distributed.device cpu")
    if num_gpus < environment.local_world_size:
        fewer = f"give --nproc {num_gpus} (torchrun: --nproc_per_node={num_gpus}), or "
        raise ValueError(
            f"{socket.gethostname()} has {counted(num_gpus, 'GPU') if num_gpus else 'no GPU'} for "
            f"{counted(environment.local_world_size, 'rank')}: "
            f"{fewer if num_gpus else ''}use --distributed.device cpu"
        )
    return torch.device("cuda", environment.local_rank)
