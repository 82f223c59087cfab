"""The program of a rank: the order of calls in `pipeline.train`, with the steps as mere time.

What decides is the product's: stop requests, watchdog, failures, checkpoints, begin, events, plan.
Copied from it is only the order in which `connect`, `train` and `TrainingLoop` call that.

Longer than 250 lines: that order is to be read beside theirs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist

from pipeline.config.schema import DistributedConfig
from pipeline.data.order.partition import BatchPlan, epoch_order
from pipeline.optim.replica import Replica
from pipeline.ranks.connect import collective_deadline, killable
from pipeline.ranks.failure import RankFailure, exit_code_of, sentence_of, waiting_for_ranks
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.mesh import Mesh
from pipeline.ranks.stop import StopRequests, StopSignals
from pipeline.ranks.watchdog import Watchdog
from pipeline.ranks.world import World
from pipeline.run import checkpoint
from pipeline.run.directory import RunDirectory
from pipeline.run.ending import EndOutcome, ExitCode
from pipeline.run.event_log import EventLog
from pipeline.run.events import CheckpointEvent, CheckpointReason, EndEvent, RunEvent, SignalEvent
from pipeline.run.phase import Phase
from pipeline.run.settings import Settings
from pipeline.train.prepare import open_run, recording_failures
from pipeline.train.progress import Progress
from pipeline.train.start import find_start, finish, record_start, resume
from tests.simulation.kernel import Kernel, SimProcess
from tests.simulation.network import Attempt, Link, SimStore, SimThreads

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunSetup:
    """What a simulated run is."""

    run: RunDirectory
    plan: BatchPlan
    config: DistributedConfig
    target_steps: int
    step_seconds: float
    save_every: int
    evaluate_every: int
    keep: int
    seed: int
    follows_samples: bool = True
    """Whether the weights count the samples of each step; else they count the steps."""


@dataclass
class Notes:
    """What is checked always, told by the ranks as it happens."""

    saved: Callable[[int, int | None], None]
    """A checkpoint of that step is announced; then the step of the best one."""
    resumed: Callable[[int], None]
    at: Callable[[int, Phase], None]
    """A rank comes to a phase: where it may hang, or raise what a fault says."""


class Weights:
    """What training has made of the samples: how often each was seen, in all epochs."""

    def __init__(self, num_samples: int) -> None:
        self.seen = torch.zeros(num_samples, dtype=torch.int32)
        self.digest = 0

    def update(self, samples: list[Any]) -> None:
        """One step, by the samples of all ranks."""
        together = np.sort(np.concatenate(samples))
        self.seen[together] += 1
        self.digest = zlib.crc32(together.tobytes(), self.digest)

    def update_steps(self, parts: list[Any], plan: BatchPlan | None) -> None:
        """Several steps at once, which all ranks have to have done after the same step.

        With `plan` the ranks' parts of an interval's first batch are compared with the batch.
        """
        step, num_steps = parts[0]
        assert all(part == parts[0] for part in parts), "ranks do other steps"
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
        self.seen, self.digest = state["model"].clone(), int(state["digest"])

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.seen.clone(), "digest": self.digest}


class _AnySettings:
    """Those of the one run that there is."""

    def check_continues(self, saved: object, where: object) -> None:
        assert saved is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class SimWorld(World):
    """A `World` whose ranks are simulated."""

    link: Link

    @waiting_for_ranks()
    def all_gather_object(self, value: T) -> list[T]:
        return self.link.exchange("control", "gather", value)

    @waiting_for_ranks()
    def broadcast_object(self, value: T) -> T:
        values: list[T] = self.link.exchange("control", "broadcast", value)
        return values[0]

    @waiting_for_ranks()
    def start_max(self, values: torch.Tensor) -> dist.Work | None:
        return self.link.start_max(values)


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
        self._attempt = attempt
        self._setup = setup
        self._environment = environment
        self._notes = notes
        self._weights = Weights(setup.plan.num_samples)
        self._progress = Progress()
        self._saved_step = 0
        self._events: EventLog | None = None
        self._order: tuple[int, Any] = (-1, None)

    @property
    def _me(self) -> SimProcess:
        return self._attempt.processes[self._environment.rank]

    def main(self) -> int:
        """`pipeline.train.__main__.main`."""
        signals = StopSignals()

        def body() -> int:
            with self._connected() as world:
                return self._train(world, signals)

        code = exit_code_of(body)
        signals.ignore()
        return code

    @contextlib.contextmanager
    def _connected(self) -> Iterator[SimWorld]:
        """`pipeline.ranks.connect.connect`."""
        attempt, config = self._attempt, self._setup.config
        store = SimStore(attempt, self._me)
        deadlines = {
            "control": collective_deadline(config.save_timeout_seconds).total_seconds(),
            "default": collective_deadline(config.timeout_seconds).total_seconds(),
            "meeting": max(config.timeout_seconds, 120.0),
        }
        link = Link(attempt, self._environment.rank, deadlines)
        with killable():
            try:
                link.exchange("meeting", "meeting", None)
            except RuntimeError as error:
                raise RankFailure(f"the ranks did not find each other ({error})") from None
        world = SimWorld(
            environment=self._environment,
            device=torch.device("cpu"),
            store=store.as_store(),
            control=None,
            watchdog_store=store.as_store(),
            threads=SimThreads(attempt, self._me, store),
            link=link,
        )
        with world.fail_together():
            pass
        try:
            yield world
        except RankFailure:
            raise
        except Exception as error:
            raise world.report_failure(error) from error

    def _train(self, world: SimWorld, signals: StopSignals) -> int:
        """`pipeline.train.__main__.train`, with `prepare` and `begin`."""
        setup, run = self._setup, self._setup.run
        with contextlib.ExitStack() as resources:
            with world.fail_together():
                if world.is_main:
                    patience = setup.config.save_timeout_seconds
                    open_run(run, self._environment, patience, resources)
            with recording_failures(run, world):
                start = find_start(run, None, world)
                if start.path is not None and checkpoint.step_of(start.path) >= setup.target_steps:
                    finish(run, start.path, world, setup.plan, setup.target_steps)
                    return ExitCode.DONE
                record_start(run, start, setup.plan, world)
                if start.path is not None:
                    replica, settings = cast(Replica, self._weights), cast(Settings, _AnySettings())
                    self._progress = resume(replica, settings, run, world, start.path)
            self._saved_step = self._progress.step
            if world.is_main:
                self._notes.resumed(self._progress.step)
                self._begin_events(world, None if start.path is None else self._progress.step)
            return self._run(world, signals)

    def _begin_events(self, world: SimWorld, resumed_from: int | None) -> None:
        plan, step = self._setup.plan, self._progress.step
        self._events = EventLog(self._setup.run.events)
        event = RunEvent(
            step=step,
            epoch=step / plan.steps_per_epoch,
            resumed_from=resumed_from,
            forked_from=None,
            world_size=world.size,
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
        self._write_row(event)

    def _write_row(self, event: Any) -> None:
        """`Journal._write`: a full disk costs the row."""
        if self._events is not None:
            with contextlib.suppress(OSError):
                self._events.write(event)

    def _run(self, world: SimWorld, signals: StopSignals) -> int:
        setup, progress = self._setup, self._progress
        mesh = Mesh(
            replica=world.rank,
            num_replicas=world.size,
            column=None,
            same_replica=None,
            same_column=None,
        )
        stops = StopRequests(world, setup.run, signals)
        watchdog = Watchdog(world, mesh, setup.run, setup.config)
        try:
            with watchdog:
                self._loop(world, watchdog, stops)
        except Exception as error:
            failure = error if isinstance(error, RankFailure) else world.report_failure(error)
            epoch = progress.step / setup.plan.steps_per_epoch
            end = EndEvent(
                step=progress.step,
                epoch=epoch,
                outcome="failed",
                error=str(failure),
                cause=failure.cause,
            )
            self._write_row(end)
            if failure is error:
                raise
            raise failure from error
        is_complete = progress.step == setup.target_steps
        outcome: EndOutcome = "completed" if is_complete else "stopped"
        epoch = progress.step / setup.plan.steps_per_epoch
        self._write_row(EndEvent(step=progress.step, epoch=epoch, outcome=outcome))
        world.all_gather_object(None)
        is_quiet = is_complete or self._environment.max_attempts
        return ExitCode.DONE if is_quiet else ExitCode.STOPPED

    def _loop(self, world: SimWorld, watchdog: Watchdog, stops: StopRequests) -> None:
        """`TrainingLoop.run`."""
        setup, progress = self._setup, self._progress
        source = None
        while progress.step < setup.target_steps and source is None:
            self._step(world, watchdog)
            self._enter(watchdog, Phase.AGREEING)
            source = stops.agreed(progress.step)
        if source is not None:
            epoch = progress.step / setup.plan.steps_per_epoch
            self._write_row(SignalEvent(step=progress.step, epoch=epoch, source=source))
        if self._saved_step != progress.step:
            reason: CheckpointReason = "periodic" if source is None else "preempt"
            error = self._save(world, watchdog, reason)
            if error is not None:
                raise RankFailure(
                    f"the checkpoint of step {progress.step} could not be saved: {error}",
                    is_reported_here=world.is_main,
                )
        stops.close()

    def _enter(self, watchdog: Watchdog, phase: Phase) -> None:
        watchdog.enter(phase, self._progress.step)
        self._notes.at(self._environment.rank, phase)

    def _step(self, world: SimWorld, watchdog: Watchdog) -> None:
        """`TrainingLoop._step`."""
        setup, progress = self._setup, self._progress
        tasks, chance = self._kernel.tasks, self._attempt.chance
        self._enter(watchdog, Phase.READING)
        tasks.sleep(0.1 * setup.step_seconds * chance.random())
        num_steps = self._num_steps(world)
        samples = self._samples(world) if setup.follows_samples else (progress.step, num_steps)
        self._enter(watchdog, Phase.COMPUTING)
        if num_steps > 1:  # nothing happens meanwhile
            seconds = (num_steps - 1) * setup.step_seconds
            self._attempt.rests_until = tasks.now + seconds
            tasks.sleep(seconds)
            watchdog.enter(Phase.COMPUTING, progress.step)
        tasks.sleep(setup.step_seconds)
        self._enter(watchdog, Phase.AVERAGING)
        with waiting_for_ranks():
            parts = world.link.exchange("default", f"gradients {progress.step}", samples)
        if setup.follows_samples:
            self._weights.update(parts)
        else:
            self._weights.update_steps(parts, setup.plan if world.is_main else None)
        self._enter(watchdog, Phase.COUNTING)
        progress.step += num_steps
        is_last = progress.step == setup.target_steps
        best_top1 = None
        if is_last or progress.step % setup.evaluate_every == 0:
            best_top1 = self._evaluate(world, watchdog)
        saves = is_last or progress.step % setup.save_every == 0
        if saves or best_top1 is not None:
            self._save(world, watchdog, "periodic" if saves else "best", best_top1)

    def _num_steps(self, world: SimWorld) -> int:
        """How many steps can be one interval: up to what is due, or what will happen."""
        setup, step = self._setup, self._progress.step
        if setup.follows_samples:
            return 1
        due = [setup.target_steps - step]
        due += [every - step % every for every in (setup.save_every, setup.evaluate_every)]
        return max(1, min(*due, int(world.link.quiet_seconds / (1.2 * setup.step_seconds)) - 5))

    def _samples(self, world: SimWorld) -> Any:
        """Of this rank in this step, by the real plan."""
        plan, step = self._setup.plan, self._progress.step
        epoch = plan.epoch_of(step)
        if self._order[0] != epoch:
            self._order = epoch, epoch_order(plan.num_samples, self._setup.seed, epoch)
        places = plan.positions(step, 0, world.rank)
        return self._order[1][places.start : places.stop]

    def _evaluate(self, world: SimWorld, watchdog: Watchdog) -> float | None:
        self._enter(watchdog, Phase.EVALUATING)
        self._kernel.tasks.sleep(self._setup.step_seconds)
        self._enter(watchdog, Phase.GATHERING)
        world.all_gather_object(None)
        top1 = top1_of(self._setup.seed, self._progress.step)
        return top1 if self._progress.evaluated(loss=1.0, top1=top1, top5=None) else None

    def _save(
        self,
        world: SimWorld,
        watchdog: Watchdog,
        reason: CheckpointReason,
        best_top1: float | None = None,
    ) -> str | None:
        """`TrainingLoop._save`."""
        progress = self._progress
        self._enter(watchdog, Phase.AGREEING)
        fingerprints = world.all_gather_object((self._weights.digest, progress.step))
        assert len(set(fingerprints)) == 1, f"the ranks differ: {fingerprints}"
        marked = progress.marked
        if best_top1 is not None:
            progress.marked = progress.step, best_top1
        self._enter(watchdog, Phase.SAVING)
        error = None
        if world.is_main:
            error = self._write(reason)
            self._enter(watchdog, Phase.AGREEING)
        error = world.broadcast_object(error)
        if error is None:
            self._saved_step = progress.step
        else:
            progress.marked = marked
        return error

    def _write(self, reason: CheckpointReason) -> str | None:
        """`TrainingLoop._write`."""
        directory, progress = self._setup.run.checkpoints, self._progress
        state = self._weights.state_dict()
        state["progress"] = dataclasses.asdict(progress)
        state["settings"] = "{}"
        try:
            path, num_bytes = checkpoint.save(directory, progress.step, state)
        except OSError as error:
            return sentence_of(error)
        event = CheckpointEvent(
            step=progress.step,
            epoch=progress.step / self._setup.plan.steps_per_epoch,
            path=str(path),
            num_bytes=num_bytes,
            seconds=0.0,
            reason=reason,
        )
        self._write_row(event)
        self._notes.saved(progress.step, None if progress.marked is None else progress.marked[0])
        with contextlib.suppress(OSError):
            if progress.marked is not None:
                checkpoint.mark_best(directory, progress.marked[0])
            checkpoint.prune(directory, self._setup.keep)
        return None


def top1_of(seed: int, step: int) -> float:
    """An accuracy that goes up and down."""
    return (seed * 31 + step * 17) % 97 / 97
