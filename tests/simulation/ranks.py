"""The program of a rank: the order of calls in `pipeline.train`, with the steps as mere time.

What decides is the product's: stop requests, watchdog, failures, saves, begin, events, plan.
Copied from it is only the order in which `connect`, `train` and `TrainingLoop` call that.

Longer than 250 lines: that order is to be read beside theirs.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from pipeline.config.schema import Config, DistributedConfig
from pipeline.data.order.partition import BatchPlan, epoch_order
from pipeline.metrics.job import JobMetrics
from pipeline.optim.replica import Replica
from pipeline.ranks.failure import RankFailure, exit_code_of, waiting_for_ranks
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.mesh import Mesh
from pipeline.ranks.stop import StopRequests, StopSignals
from pipeline.ranks.supervisor import supervise
from pipeline.ranks.watchdog import Watchdog
from pipeline.ranks.world import World
from pipeline.run import checkpoint
from pipeline.run.console import Console
from pipeline.run.directory import RunDirectory
from pipeline.run.ending import EndOutcome, ExitCode
from pipeline.run.events import CheckpointEvent, CheckpointReason, RunEvent
from pipeline.run.phase import Phase
from pipeline.run.settings import Settings
from pipeline.train.__main__ import run_rank
from pipeline.train.command import Command
from pipeline.train.components import Components
from pipeline.train.due import Eta
from pipeline.train.journal import Journal
from pipeline.train.prepare import open_run, recording_failures
from pipeline.train.progress import Progress
from pipeline.train.replicas import ReplicaCheck
from pipeline.train.saving import Saves
from pipeline.train.start import Start, begin, find_start, finish, record_start
from pipeline.train.survival import Memory, Stage, Survivors
from tests.simulation.doors import SimWorld
from tests.simulation.kernel import Kernel
from tests.simulation.network import Attempt, Violation

_UPDATE_SECONDS = 0.01


@dataclass(frozen=True, kw_only=True)
class RunSetup:
    """What a simulated run is."""

    run: RunDirectory
    plan: BatchPlan
    config: Config
    target_steps: int
    step_seconds: float
    sync_seconds: float
    """What the disk takes for an fsync, if nothing is wrong with it."""
    save_every: int
    evaluate_every: int
    follows_samples: bool = True
    """Whether the weights count the samples of each step; else they count the steps."""

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def limits(self) -> DistributedConfig:
        return self.config.distributed


@dataclass
class Notes:
    """What is checked always, told by the ranks as it happens."""

    saved: Callable[[int, int | None], None]
    """A checkpoint of that step is announced; then the step of the best one."""
    resumed: Callable[[int], None]
    left: Callable[[int, EndOutcome], None]
    """The ranks leave after that step."""
    at: Callable[[int, Phase], None]
    """A rank comes to a phase: where it may hang, or raise what a fault says."""


class Weights:
    """What training has made of the samples: how often each was seen, in all epochs.

    It stands for a `Replica`: `state_dict` has the tensors themselves, which the steps change.
    """

    def __init__(self, num_samples: int, mesh: Mesh) -> None:
        self.seen = torch.zeros(num_samples, dtype=torch.int32)
        self.digest = 0
        self.mesh = mesh
        self.model = SimpleNamespace(named_buffers=lambda: ())

    def update(self, given: list[tuple[int, Any]]) -> None:
        """One step, by the digests and samples of all ranks."""
        digests, samples = zip(*given, strict=True)
        assert len(set(digests)) == 1, f"the ranks differ before a step: {digests}"
        together = np.sort(np.concatenate(samples))
        self.seen[together] += 1
        self.digest = zlib.crc32(together.tobytes(), self.digest)

    def update_steps(self, parts: list[Any], plan: BatchPlan | None) -> None:
        """Several steps at once, which all ranks have to have done after the same step.

        With `plan` the ranks' parts of an interval's first batch are compared with the batch.
        """
        step, num_steps = parts[0]
        assert len(set(parts)) == 1, "ranks do other steps"
        assert step == self.digest, f"step {step} comes after step {self.digest}"
        self.digest = step + num_steps
        if plan is None or num_steps == 1:
            return
        places = [plan.positions(step, 0, rank) for rank in range(plan.num_replicas)]
        start = step % plan.steps_per_epoch * plan.global_batch_size
        assert [place for part in places for place in part] == list(
            range(start, start + plan.samples_in_step(step))
        ), "the ranks' parts of a batch are not the batch"

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen, self.digest = state["model"]["seen"].clone(), int(state["digest"])

    def state_dict(self) -> dict[str, Any]:
        return {"model": {"seen": self.seen}, "digest": self.digest}

    held_state, load_held_state = state_dict, load_state_dict

    def is_finite(self) -> bool:
        return True

    def fingerprint(self) -> int:
        return self.digest

    def check(self, fingerprints: Sequence[int]) -> None:
        """Of all ranks, as `ReplicaCheck` compares them."""
        assert len(set(fingerprints)) == 1, f"the ranks differ: {fingerprints}"


class _Journal(Journal):
    """Tells the checks what is announced."""

    def __init__(self, setup: RunSetup, rank: int, progress: Progress, notes: Notes) -> None:
        is_main = rank == 0
        events = setup.run.events if is_main else Path(os.devnull)
        eta = Eta(setup.config, setup.plan, setup.target_steps)
        super().__init__(events, Console(None), JobMetrics(None), setup.plan, eta)
        self._progress, self._notes, self._is_main = progress, notes, is_main

    def checkpointed(self, event: CheckpointEvent, waited_seconds: float) -> None:
        super().checkpointed(event, waited_seconds)
        marked = self._progress.marked
        self._notes.saved(event.step, None if marked is None else marked[0])

    def ended(self, step: int, outcome: EndOutcome, failure: RankFailure | None = None) -> None:
        super().ended(step, outcome, failure)
        if self._is_main:
            self._notes.left(step, outcome)


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What `Saves` and the loop ask of `Components`."""

    setup: RunSetup
    start: Start
    world: SimWorld
    mesh: Mesh
    replica: Weights
    progress: Progress
    journal: Journal
    memory: Memory
    watchdog: Watchdog
    notes: Notes
    settings: Settings

    @property
    def config(self) -> Config:
        return self.setup.config

    @property
    def run(self) -> RunDirectory:
        return self.setup.run

    @property
    def epoch(self) -> float:
        return self.progress.step / self.setup.plan.steps_per_epoch

    def enter(self, phase: Phase) -> None:
        self.watchdog.enter(phase, self.progress.step)
        self.notes.at(self.world.rank, phase)


class RankProgram:
    """One rank, from its start to its exit code."""

    def __init__(
        self,
        kernel: Kernel,
        attempt: Attempt,
        setup: RunSetup,
        environment: LaunchEnvironment,
        notes: Notes,
    ) -> None:
        self._kernel = kernel
        self.attempt = attempt
        self._setup = setup
        self._environment = environment
        self._notes = notes
        self.world: SimWorld | None = None

    def main(self) -> int:
        """`pipeline.train.__main__.main`."""
        limits, environment = self._setup.limits, self._environment
        self._kernel.running().program = self
        signals = StopSignals()

        def body() -> int:
            if not limits.warm_restarts:
                return run_rank(environment, self._command, signals)
            return supervise(environment, limits, self._run_rank, signals)

        code = exit_code_of(body)
        signals.ignore()
        return code

    @property
    def _command(self) -> Command:
        return cast(Command, SimpleNamespace(config=self._setup.config))

    def _run_rank(self, environment: LaunchEnvironment) -> int:
        """`pipeline.train.__main__._run`, in a process of its own."""
        me = self._kernel.running()
        me.program = RankProgram(self._kernel, self.attempt, self._setup, environment, self._notes)
        self.attempt.take_place(environment.rank, me)
        return exit_code_of(partial(run_rank, environment, self._command))

    def train(self, world: World, signals: StopSignals, memory: Memory) -> int:
        """`pipeline.train.__main__.train`, with `prepare` and `build`."""
        setup, run = self._setup, self._setup.run
        assert isinstance(world, SimWorld)
        with contextlib.ExitStack() as resources:
            with world.fail_together():
                if world.is_main:
                    patience = setup.limits.save_timeout_seconds
                    open_run(run, world.environment, patience, resources)
            with recording_failures(run, world):
                prepared = self._build(world, memory)
            if isinstance(prepared, int):
                return ExitCode.DONE
            parts = prepared
            stops = StopRequests(world, run, signals)
            if world.is_main:
                self._check_kept(world, parts.progress.step)
                self._notes.resumed(parts.progress.step)
            self._announce(parts)
            return self._run(parts, stops)

    def _check_kept(self, world: World, step: int) -> None:
        """They may meet at all, and no later step is in memory, unless its best one is lost."""
        most = self._setup.limits.warm_restarts
        if world.generation > most:
            raise Violation(f"generation {world.generation} has met, and {most} may follow")
        kept = self.attempt.kept.get(world.generation, {})
        if max(kept.values(), default=0) > step and world.generation not in self.attempt.lacks_best:
            raise Violation(f"ranks have kept the steps {kept}, and {step} is gone on from")

    def _build(self, world: SimWorld, memory: Memory) -> _Parts | int:
        setup, run = self._setup, self._setup.run
        mesh = Mesh(
            replica=world.rank,
            num_replicas=world.size,
            column=None,
            same_replica=None,
            same_column=None,
        )
        if memory.held is not None:
            kept = self.attempt.kept.setdefault(world.generation, {})
            kept[world.rank] = memory.held.moment.step
            marked = memory.held.progress.marked
            if marked and not checkpoint.path_of(run.checkpoints, marked[0]).is_dir():
                self.attempt.lacks_best.add(world.generation)
        start = find_start(run, None, world, Survivors.find(memory, run, world, mesh))
        if start.path is not None and checkpoint.step_of(start.path) >= setup.target_steps:
            return finish(run, start.path, world, setup.plan, setup.target_steps)
        record_start(run, start, setup.plan, world)
        weights = Weights(setup.plan.num_samples if setup.follows_samples else 0, mesh)
        settings = Settings(recipe="simulated", config=setup.config, manifest_sha256="")
        known = cast(Replica, weights), settings, 1, setup.plan, setup.target_steps
        progress = begin(start, *known, run, world, memory)
        if start.path is not None:
            assert progress.step == checkpoint.step_of(start.path), "it is another step's"
        return _Parts(
            setup=setup,
            start=start,
            world=world,
            mesh=mesh,
            replica=weights,
            progress=progress,
            journal=_Journal(setup, world.rank, progress, self._notes),
            memory=memory,
            watchdog=Watchdog(world, mesh, run, setup.limits),
            notes=self._notes,
            settings=settings,
        )

    def _announce(self, parts: _Parts) -> None:
        plan, start = self._setup.plan, parts.start
        event = RunEvent(
            step=parts.progress.step,
            epoch=parts.epoch,
            resumed_from=None if start.step is None else parts.progress.step,
            forked_from=None,
            kept_by=None if start.survivors is None else start.survivors.rank,
            world_size=parts.world.size,
            local_batch_size=plan.local_batch_size,
            accumulation_steps=1,
            global_batch_size=plan.global_batch_size,
            steps_per_epoch=plan.steps_per_epoch,
            target_steps=self._setup.target_steps,
            device="cpu",
            precision="fp32",
            num_train_samples=plan.num_samples,
            num_val_samples=1,
            shard_set=None,
        )
        parts.journal.started(parts.progress, event, parts.config.epochs, {}, {})

    def _run(self, parts: _Parts, stops: StopRequests) -> int:
        world, progress, journal = parts.world, parts.progress, parts.journal
        loop = _Loop(parts, self._kernel, self.attempt)
        try:
            with parts.watchdog:
                loop.run(stops)
        except Exception as error:
            failure = error if isinstance(error, RankFailure) else world.report_failure(error)
            loop.saves.finish()
            journal.ended(progress.step, "failed", failure)
            if failure is error:
                raise
            raise failure from error
        is_complete = progress.step == self._setup.target_steps
        journal.ended(progress.step, "completed" if is_complete else "stopped")
        world.all_gather_object(None)
        environment = world.environment
        is_quiet = is_complete or (environment.max_attempts and environment.supervisor is None)
        return ExitCode.DONE if is_quiet else ExitCode.STOPPED


class _Loop:
    """`TrainingLoop`."""

    def __init__(self, parts: _Parts, kernel: Kernel, attempt: Attempt) -> None:
        self._parts, self._kernel, self._attempt = parts, kernel, attempt
        self._setup = parts.setup
        self.saves = Saves(cast(Components, parts), cast(ReplicaCheck, parts.replica))
        self._order: tuple[int, Any] = (-1, None)
        self._has_stepped = False

    def run(self, stops: StopRequests) -> None:
        parts, progress, world = self._parts, self._parts.progress, self._parts.world
        source = None
        self._go_on_after_step()
        while progress.step < self._setup.target_steps and source is None:
            self._step()
            parts.enter(Phase.AGREEING)
            source = stops.agreed(progress.step)
        if source is not None:
            parts.journal.stop_requested(progress.step, source)
            if world.is_main and world.generations is not None:
                world.generations.note_stop(world.generation, source)
        self.saves.settle()
        if self.saves.saved_step != progress.step:
            reason: CheckpointReason = "periodic" if source is None else "preempt"
            error = self.saves.save(reason, in_background=False)
            if error is not None:
                raise RankFailure(
                    f"the checkpoint of step {progress.step} could not be saved: {error}",
                    is_reported_here=parts.world.is_main,
                )
        self.saves.close()
        stops.close()
        parts.memory.forget()

    def _step(self) -> None:
        setup, parts, progress = self._setup, self._parts, self._parts.progress
        tasks, world = self._kernel.tasks, parts.world
        parts.enter(Phase.READING)
        tasks.sleep(0.1 * setup.step_seconds * self._attempt.chance.random())
        num_steps = self._num_steps()
        mine = (progress.step, num_steps)
        if setup.follows_samples:
            mine = parts.replica.digest, self._samples()
        parts.enter(Phase.COMPUTING)
        if num_steps > 1:  # nothing happens meanwhile
            seconds = (num_steps - 1) * setup.step_seconds
            self._attempt.rests_until = tasks.now + seconds
            tasks.sleep(seconds)
            parts.watchdog.enter(Phase.COMPUTING, progress.step)
        tasks.sleep(setup.step_seconds)
        parts.enter(Phase.AVERAGING)
        with waiting_for_ranks():
            given = world.joined.exchange("default", f"gradients {progress.step}", mine)
        parts.memory.forget()
        if world.generations is not None:
            tasks.sleep(_UPDATE_SECONDS)
        if setup.follows_samples:
            parts.replica.update(given)
        else:
            parts.replica.update_steps(given, setup.plan if world.is_main else None)
        parts.enter(Phase.COUNTING)
        progress.step += num_steps
        self._hold(Stage.STEPPED)
        if world.is_main and world.generations is not None and not self._has_stepped:
            world.generations.note_step(world.generation)
        self._has_stepped = True
        self.saves.report()
        is_last = progress.step == setup.target_steps
        evaluates = is_last or progress.step % setup.evaluate_every == 0
        self._do_due(evaluates=evaluates, saves=is_last or progress.step % setup.save_every == 0)

    def _hold(self, stage: Stage, best_top1: float | None = None) -> None:
        parts = self._parts
        known = parts.progress, cast(Replica, parts.replica), parts.world, best_top1
        parts.memory.hold(stage, *known)

    def _go_on_after_step(self) -> None:
        parts, setup, step = self._parts, self._setup, self._parts.progress.step
        held = parts.memory.held
        if held is None:
            return
        stage, is_last = held.moment.stage, step == setup.target_steps
        evaluates = stage < Stage.EVALUATED and (is_last or step % setup.evaluate_every == 0)
        saves = stage < Stage.DONE and (is_last or step % setup.save_every == 0)
        self._do_due(evaluates=evaluates, saves=saves, best_top1=held.best_top1)

    def _do_due(self, *, evaluates: bool, saves: bool, best_top1: float | None = None) -> None:
        parts = self._parts
        if evaluates:
            best_top1 = self._evaluate()
            self._hold(Stage.EVALUATED, best_top1)
        if saves or best_top1 is not None:
            reason: CheckpointReason = "periodic" if saves else "best"
            has_steps_left = parts.progress.step < self._setup.target_steps
            error = self.saves.save(reason, best_top1, in_background=has_steps_left)
            if error is not None:
                parts.journal.no_checkpoint(error)
            self._hold(Stage.DONE)

    def _num_steps(self) -> int:
        """How many steps can be one interval: up to what is due, or what will happen."""
        setup, step = self._setup, self._parts.progress.step
        if setup.follows_samples or not self._has_stepped:
            return 1
        quiet_seconds = self._parts.world.joined.quiet_seconds
        due = [setup.target_steps - step]
        due += [every - step % every for every in (setup.save_every, setup.evaluate_every)]
        return max(1, min(*due, int(quiet_seconds / (1.2 * setup.step_seconds)) - 5))

    def _samples(self) -> Any:
        """Of this rank in this step, by the real plan."""
        plan, step = self._setup.plan, self._parts.progress.step
        epoch = plan.epoch_of(step)
        if self._order[0] != epoch:
            self._order = epoch, epoch_order(plan.num_samples, self._setup.seed, epoch)
        places = plan.positions(step, 0, self._parts.world.rank)
        return self._order[1][places.start : places.stop]

    def _evaluate(self) -> float | None:
        parts, progress = self._parts, self._parts.progress
        parts.enter(Phase.EVALUATING)
        self._kernel.tasks.sleep(self._setup.step_seconds)
        parts.enter(Phase.GATHERING)
        parts.world.all_gather_object(None)
        self.saves.settle()
        top1 = top1_of(self._setup.seed, progress.step)
        return top1 if progress.evaluated(loss=1.0, top1=top1, top5=None) else None


def top1_of(seed: int, step: int) -> float:
    """An accuracy that goes up and down."""
    return (seed * 31 + step * 17) % 97 / 97
