"""The faults that alerts are for, caused in real runs: a run of its own for each.

Where a rank is slow or reckons wrong, it is so from when its trigger is there: a file beside the
run. Whatever happens to a process, a disk or a server is done to it from outside.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.data.batches.loader import Loader
from pipeline.explain.explanation import CauseKind
from pipeline.optim.replica import Replica
from pipeline.run.ending import ExitCode
from tests.integration.training import (
    GLOBAL_BATCH,
    NUM_TRAIN,
    flip_bit,
    shard_synthetic,
    training,
    wait_for_step,
)
from tests.machine import small_disk
from tests.pipeline.data.cache.flaky_server import FlakyServer, serving
from tests.pipeline.monitoring import exporter_pid, target_file, wait_for
from tests.pipeline.rank_jobs import Job

VICTIM = 1
"""The rank that a fault befalls."""

STEP_SECONDS = 0.2
"""What every rank sleeps in each step, so that many runs share two cores.

A slow victim sleeps twice as long in addition.
"""

PUBLISH_SECONDS = 1.0
"""Half the default: how long a silent rank is still taken for a live one goes with it, ten seconds,
and the rules' windows are shorter, too."""

_NUM_PREEMPTIONS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A run that is being trained, and what a fault may take hold of."""

    run: Path
    shards: Path
    """Its own: they may be damaged."""
    trigger: Path
    server: FlakyServer
    """Serves the same shards."""
    start: Callable[[], Job]
    jobs: list[Job] = field(default_factory=list)
    """All that were started, the newest last."""

    def signal_victim(self, number: signal.Signals) -> None:
        pid = self.jobs[-1].processes[VICTIM].pid
        assert pid is not None
        os.kill(pid, number)


def _trigger(scene: Scene) -> None:
    scene.trigger.touch()


def _no_fault(_: Scene) -> None:
    """A quiet run."""


def _kill(scene: Scene) -> None:
    scene.signal_victim(signal.SIGKILL)


def _stop(scene: Scene) -> None:
    scene.signal_victim(signal.SIGSTOP)


def _kill_exporter(scene: Scene) -> None:
    os.kill(exporter_pid(scene.run), signal.SIGKILL)


def _fill_disk(scene: Scene) -> None:
    with (scene.run / "checkpoints" / "other").open("wb") as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 16)):
            file.flush()


def _damage_images(scene: Scene) -> None:
    for sample in range(0, NUM_TRAIN, 4):
        flip_bit(scene.shards, "train", sample)


def _stall_server(scene: Scene) -> None:
    for path in scene.shards.glob("*.tar"):
        scene.server.faults[path.name] = ["silence"] * 100


def _preempt(scene: Scene) -> None:
    """As a scheduler does that is short of nodes: each time the job has to go on from a save."""
    for number in range(1, _NUM_PREEMPTIONS + 1):
        job = scene.jobs[-1]
        wait_for_step(scene.run, 1, attempt=number)
        for process in job.processes:
            process.terminate()
        assert job.wait() == [ExitCode.STOPPED] * len(job.processes)
        scene.jobs.append(scene.start())


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """What goes wrong, and what must be said of it."""

    cause: Callable[[Scene], None]
    alerts: Mapping[str, Mapping[str, str]]
    """The alerts that fire, and labels that each has."""
    kind: CauseKind | None = None
    """What `launch explain` calls it."""
    num_ranks: int = 2
    options: Sequence[object] = ()
    disk: str | None = None
    """The size of the disk for checkpoints, if it is one of its own."""
    is_remote: bool = False


_AT_VICTIM = {"rank": str(VICTIM)}

FAULTS: Mapping[str, Fault] = {
    "quiet": Fault(cause=_no_fault, alerts={}),
    "kill -9": Fault(cause=_kill, kind="killed_rank", alerts={"RankDead": _AT_VICTIM}),
    "SIGSTOP": Fault(cause=_stop, kind="silent_rank", alerts={"HangSuspected": _AT_VICTIM}),
    "sleep in the reader": Fault(
        cause=_trigger, kind="straggler", alerts={"Straggler": _AT_VICTIM | {"phase": "data_wait"}}
    ),
    "sleep in the step": Fault(
        cause=_trigger,
        kind="straggler",
        alerts={"Straggler": _AT_VICTIM | {"phase": "forward_backward"}},
    ),
    "NaN": Fault(cause=_trigger, kind="diverged", alerts={"LossNotFinite": _AT_VICTIM}),
    "full disk": Fault(
        cause=_fill_disk, kind="disk_full", alerts={"DiskNearlyFull": {}}, disk="64m"
    ),
    "corrupt samples": Fault(
        cause=_damage_images,
        kind="corrupt_samples",
        alerts={"CorruptSamples": {}},
        options=("--data.max_corrupt_ratio", 1),
    ),
    "flipped weight": Fault(
        cause=_trigger, kind="replicas_differ", alerts={"ReplicasDiffer": _AT_VICTIM}, num_ranks=3
    ),
    "dead exporter": Fault(cause=_kill_exporter, kind="dead_exporter", alerts={"ExporterDown": {}}),
    "stalled remote shard": Fault(
        cause=_stall_server,
        kind="stall",
        alerts={"RunStalled": {"phase": "reading"}},
        is_remote=True,
    ),
    "no learning": Fault(
        cause=_no_fault,
        kind="not_learning",
        alerts={"NotLearning": {}},
        options=("--not_learning_after_samples", 3 * GLOBAL_BATCH),
    ),
    "repeated preemption": Fault(
        cause=_preempt, kind="preempted", alerts={"PreemptedTooOften": {}}
    ),
}


def stage(
    name: str,
    folder: Path,
    whole: Path,
    resources: contextlib.ExitStack,
    step_seconds: float = STEP_SECONDS,
    publish_seconds: float = PUBLISH_SECONDS,
) -> Scene:
    """Start the run of a fault under `folder`; `whole` has the shards that it gets a copy of."""
    fault, short = FAULTS[name], name.replace(" ", "-")
    run, shards = folder / short, folder.with_name(f"{folder.name}-shards") / short
    if fault.is_remote:
        _shard_finely(shards)
    else:
        shutil.copytree(whole, shards)
    server = resources.enter_context(serving(shards))
    if fault.disk is not None:
        resources.enter_context(small_disk(run / "checkpoints", fault.disk))
    words: list[object] = ["--epochs", 1000, "--metrics.exporter", "true"]
    words += ["--metrics.exporter_port", 0, "--metrics.publish_seconds", publish_seconds]
    words += ["--evaluation.every_epochs", 5, *fault.options]
    if fault.is_remote:
        words += ["--data.reader", "remote", "--data.cache_dir", shards.with_name("cache")]
        words += ["--data.shuffle_shards", 2, "--data.prefetch_batches", 1]
        words += ["--data.cache_bytes", 1_500_000]
    arguments = training(Path(server.url) if fault.is_remote else shards, run, *words)
    if fault.is_remote:
        arguments[arguments.index("--data.shards") + 1] = server.url  # a path has one slash less
    trigger = folder / f"{short}.trigger"
    before = partial(prepare_rank, name, trigger, step_seconds)

    def start() -> Job:
        job = Job(fault.num_ranks, "pipeline.train", arguments, before=before)
        return resources.enter_context(job)

    scene = Scene(run=run, shards=shards, trigger=trigger, server=server, start=start)
    scene.jobs.append(start())
    return scene


def _shard_finely(shards: Path) -> None:
    """So many shards that they are fetched for minutes."""
    sizes = ("--num-train", 1200, "--num-val", 8, "--encoding", "jpeg", "--samples-per-shard", 6)
    shard_synthetic(shards, *sizes, "--workers", 1)


def wait_until_it_trains(scene: Scene) -> None:
    """And its exporter is there."""
    wait_for_step(scene.run, 2)
    wait_for(target_file(scene.run).exists, "the exporter's target")


def prepare_rank(name: str, trigger: Path, step_seconds: float) -> None:
    """Runs in each rank before it trains: replaces what the fault is to befall."""
    is_victim = int(os.environ["RANK"]) == VICTIM

    _call_before(Replica, "add_gradients", lambda _: time.sleep(step_seconds))
    if name == "no learning":  # from the first step on, which all ranks take together
        _forget_everything()
    if not is_victim:
        return
    match name:
        case "sleep in the reader":
            _call_before(Loader, "__next__", partial(_sleep_if, trigger, 2 * step_seconds))
        case "sleep in the step":
            _call_before(Replica, "add_gradients", partial(_sleep_if, trigger, 2 * step_seconds))
        case "NaN":
            _spoil_inputs(trigger)
        case "flipped weight":
            _flip_weight(trigger)
        case _:
            pass


def _sleep_if(trigger: Path, seconds: float, _: object) -> None:
    if trigger.exists():
        time.sleep(seconds)


def _call_before(owner: type[Any], name: str, action: Callable[[Any], None]) -> None:
    plain = getattr(owner, name)

    def changed(*arguments: Any, **options: Any) -> Any:
        action(arguments[0])
        return plain(*arguments, **options)

    setattr(owner, name, changed)


def _spoil_inputs(trigger: Path) -> None:
    plain = Replica.add_gradients

    def changed(replica: Replica, inputs: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        value = math.nan if trigger.exists() else 1.0
        return plain(replica, inputs * value, *arguments, **options)

    Replica.add_gradients = changed  # type: ignore[method-assign, assignment]


def _flip_weight(trigger: Path) -> None:
    """The lowest bit of one weight's exponent, once."""
    plain, times = Replica.update, iter((True,))

    def changed(replica: Replica, **options: Any) -> Any:
        found = plain(replica, **options)
        if trigger.exists() and next(times, False):
            weight = next(replica.model.parameters())
            with torch.no_grad():
                weight.view(torch.int32)[(0,) * weight.dim()] ^= 1 << 23
        return found

    Replica.update = changed  # type: ignore[method-assign, assignment]


def _forget_everything() -> None:
    """Every step begins with weights of zero: the answers are those of guessing."""

    def forget(replica: Replica) -> None:
        with torch.no_grad():
            for parameter in replica.model.parameters():
                parameter.zero_()

    _call_before(Replica, "add_gradients", forget)
