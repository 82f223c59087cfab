"""What breaks in a simulated run, and when: drawn from the seed before it begins.

Longer than 250 lines: each kind of fault is here, and what must come of it.
"""

from __future__ import annotations

import os
import random
import signal
from dataclasses import dataclass
from functools import partial
from typing import Literal, assert_never, get_args

from pipeline.run import checkpoint
from pipeline.run.phase import Phase
from tests.simulation.checks import SYNCS_OF_A_SAVE, Checks, end_seconds, hang_seconds
from tests.simulation.job import JobSetup, Slurm
from tests.simulation.kernel import EPOCH, Kernel, SimProcess
from tests.simulation.network import Attempt, Violation
from tests.simulation.ranks import RunSetup
from tests.simulation.tasks import Condition
from tests.simulation.torchrun import orphan

FaultKind = Literal[
    "exception",
    "kill",
    "kill at a call",
    "stop",
    "hang",
    "hold python",
    "signal to a rank",
    "preemption",
    "stop file",
    "torchrun killed",
    "job killed",
    "host down",
    "power cut",
    "partition",
    "full disk",
    "slow disk",
    "damaged checkpoint",
    "clock jump",
    "supervisor killed",
    "kill in a collective",
]
_IN_A_COLLECTIVE_SECONDS = 0.001
KINDS: tuple[FaultKind, ...] = get_args(FaultKind)[:-2]
"""Those that need no supervisor."""
LOSSES: tuple[FaultKind, ...] = (
    *("kill", "kill at a call", "exception", "stop", "hang", "hold python", "signal to a rank"),
    *("supervisor killed", "kill in a collective", "kill in a collective"),
)
"""By which a rank is lost."""


@dataclass(frozen=True)
class Fault:
    """Something that breaks."""

    time: float
    kind: FaultKind
    rank: int
    """Or its host."""
    amount: float
    """Between 0 and 1: how much, how long, or which of several."""

    def __str__(self) -> str:
        return f"{self.kind} (rank {self.rank})"


def draw_losses(chance: random.Random, num_ranks: int, seconds: float) -> list[Fault]:
    """One to five times a rank is lost, or something else breaks; often a second one soon after."""
    faults = []
    for _ in range(chance.randint(1, 5)):
        kind = chance.choice(LOSSES) if chance.random() < 0.8 else chance.choice(KINDS)
        time, rank = chance.uniform(0, seconds), chance.randrange(num_ranks)
        faults.append(Fault(time=time, kind=kind, rank=rank, amount=chance.random()))
        if chance.random() < 0.4:
            kind, time = chance.choice(LOSSES), time + chance.choice([0.0, 0.5, 5.0, 30.0])
            rank = chance.randrange(num_ranks)
            faults.append(Fault(time=time, kind=kind, rank=rank, amount=chance.random()))
    return sorted(faults, key=lambda fault: fault.time)


def draw(chance: random.Random, num_ranks: int, seconds: float) -> list[Fault]:
    """One to six faults in that time."""
    faults = [
        Fault(
            time=chance.uniform(0, seconds),
            kind=chance.choice(KINDS),
            rank=chance.randrange(num_ranks),
            amount=chance.random(),
        )
        for _ in range(chance.randint(1, 6))
    ]
    return sorted(faults, key=lambda fault: fault.time)


class Faults:
    """Lets them happen."""

    def __init__(
        self,
        kernel: Kernel,
        setup: RunSetup,
        job: JobSetup,
        slurm: Slurm,
        checks: Checks,
        chance: random.Random,
    ) -> None:
        self._kernel, self._setup, self._slurm, self._checks = kernel, setup, slurm, checks
        self._chance = chance
        self._never = Condition(kernel.tasks)
        self._armed: dict[SimProcess, Fault] = {}
        """What a rank does when it comes to the next phase."""
        self._bound = end_seconds(setup, job.shutdown_seconds)
        self.left = 0

    def schedule(self, faults: list[Fault]) -> None:
        self.left = len(faults)
        for fault in faults:
            self._kernel.tasks.at(fault.time, partial(self._happen, fault))

    def at(self, rank: int, phase: Phase) -> None:
        """A rank comes to a phase."""
        attempt = self._attempt
        if attempt is None or rank not in attempt.processes:
            return
        process = attempt.processes[rank]
        if self._kernel.running() in attempt.former.get(rank, ()):
            raise Violation(f"two processes are rank {rank}")
        if self._kernel.running() is not process:
            return
        attempt.begun_at = min(attempt.begun_at, self._kernel.tasks.now)
        attempt.trains.add(rank)
        if phase is Phase.COUNTING:
            attempt.last_step = self._kernel.tasks.now
        fault = self._armed.pop(process, None)
        if fault is None:
            return
        if fault.kind == "kill in a collective":
            if phase is Phase.AVERAGING:
                self._kill_soon(attempt, fault, process)
            else:
                self._armed[process] = fault
            return
        process.is_faulty = True
        self._checks.must_end(attempt, str(fault), self._bound)
        if fault.kind == "exception":
            raise ValueError("a fault of the simulation")
        self._checks.must_be_named(attempt, rank, str(fault), hang_seconds(self._setup, phase))
        self._never.wait(lambda: False)

    def _kill_soon(self, attempt: Attempt, fault: Fault, process: SimProcess) -> None:
        """If it is the last rank to come, some of the others have the result, and some have not."""
        process.is_faulty = True
        self._checks.must_end(attempt, str(fault), self._bound)
        end = partial(self._kernel.end, process, -signal.SIGKILL)
        self._kernel.tasks.after(_IN_A_COLLECTIVE_SECONDS, end)

    @property
    def _attempt(self) -> Attempt | None:
        torchrun = self._slurm.torchrun
        return None if torchrun is None else torchrun.attempt

    def _happen(self, fault: Fault) -> None:
        self.left -= 1
        attempt = self._attempt
        process = None
        if attempt is not None:
            process = attempt.processes.get(fault.rank)
        if process is not None and process.is_dead:
            process = None
        self._checks.say(str(fault) if process else f"{fault}: but no rank runs")
        match fault.kind:
            case (
                "exception"
                | "kill"
                | "kill at a call"
                | "stop"
                | "hang"
                | "hold python"
                | "signal to a rank"
                | "torchrun killed"
                | "supervisor killed"
                | "kill in a collective"
            ):
                if attempt is not None and process is not None:
                    self._to_rank(fault, attempt, process)
            case "preemption" | "job killed" | "host down" | "power cut" | "partition":
                self._to_job(fault, attempt, process)
            case "stop file" | "full disk" | "slow disk" | "damaged checkpoint" | "clock jump":
                self._to_files(fault, process)
            case unknown:
                assert_never(unknown)

    def _to_rank(self, fault: Fault, attempt: Attempt, process: SimProcess) -> None:
        attempt.num_faults += 1
        kernel = self._kernel
        match fault.kind:
            case "exception" | "hang" | "kill in a collective":
                self._armed[process] = fault
            case "kill":
                process.is_faulty = True
                self._checks.must_end(attempt, str(fault), self._bound)
                kernel.end(process, -signal.SIGKILL)
            case "kill at a call":
                process.is_faulty = True
                process.calls_left = int(fault.amount * 40)
            case "stop" | "hold python":
                process.is_faulty = True
                self._checks.must_end(attempt, str(fault), self._bound)
                seconds = hang_seconds(self._setup, Phase.SAVING) + 3 * self._setup.step_seconds
                if (
                    len(attempt.trains) == attempt.num_processes > 1
                ):  # else nobody is there who could
                    self._checks.must_be_named(attempt, fault.rank, str(fault), seconds)
                if fault.kind == "stop":
                    kernel.send(process, signal.SIGSTOP)
                else:
                    kernel.tasks.freeze(process)
            case "signal to a rank":
                self._slurm.may_be_interrupted = True
                self._must_stop(fault, attempt)
                numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
                kernel.send(process, numbers[int(fault.amount * len(numbers))])
                process.is_faulty |= process.is_dead  # no handler runs while the ranks meet
            case "supervisor killed":
                process.is_faulty = True
                self._checks.must_end(attempt, str(fault), self._bound)
                workers = self._slurm.torchrun.workers if self._slurm.torchrun else []
                for worker in workers:
                    if worker.pid in (process.pid, process.parent):
                        kernel.end(worker, -signal.SIGKILL)
            case "torchrun killed":
                self._slurm.may_be_interrupted = True
                self._checks.must_end(attempt, str(fault), self._bound)
                for agent in self._slurm.torchrun.agents if self._slurm.torchrun else ():
                    if {process.pid, process.parent} & {worker.pid for worker in agent.workers}:
                        orphan(agent.process, agent.workers, kernel)
            case _:
                raise AssertionError(fault.kind)

    def _must_stop(self, fault: Fault, attempt: Attempt) -> None:
        """The ranks that are asked to leave do so after a few polls, if nothing else is wrong."""
        if self._kernel.disk.is_bad or any(one.is_faulty for one in attempt.processes.values()):
            return
        num_steps = 2 * max(1.0, 0.5 / self._setup.step_seconds) + 4
        seconds = 10 + 1.5 * num_steps * self._setup.step_seconds
        seconds += 2 * SYNCS_OF_A_SAVE * self._setup.sync_seconds
        self._checks.must_stop(attempt, str(fault), seconds)

    def _to_job(self, fault: Fault, attempt: Attempt | None, process: SimProcess | None) -> None:
        slurm, torchrun = self._slurm, self._slurm.torchrun
        if torchrun is None or torchrun.is_over:
            return
        match fault.kind:
            case "preemption":
                slurm.preempt()
            case "job killed":
                torchrun.kill()
            case "power cut":
                for start in slurm.starts:
                    start.kill(everywhere=True)
                lost = self._kernel.disk.lose_power(self._chance)
                self._checks.say(f"{lost} changes of folders are lost")
                slurm.lose_host()
            case "host down" | "partition":
                if attempt is None or process is None:
                    return
                attempt.num_faults += 1
                self._checks.must_end(attempt, str(fault), self._bound)
                if fault.kind == "host down":
                    self._take_down(process)
                else:
                    process.host.is_cut_off = True
                    attempt.changed.notify()
                    if fault.amount < 0.5:
                        seconds = fault.amount * 4 * self._setup.limits.timeout_seconds
                        self._kernel.tasks.after(
                            seconds, partial(self._reconnect, attempt, process)
                        )
                self._kernel.tasks.after(30.0 + 200 * fault.amount, slurm.lose_host_if_gone)
            case _:
                raise AssertionError(fault.kind)

    def _take_down(self, process: SimProcess) -> None:
        host, torchrun = process.host, self._slurm.torchrun
        host.is_down = True
        for agent in torchrun.agents if torchrun else ():
            if agent.host is host:
                for one in (agent.process, *agent.workers):
                    self._kernel.end(one, -signal.SIGKILL)

    def _reconnect(self, attempt: Attempt, process: SimProcess) -> None:
        """Its own attempt may be of an earlier start by now."""
        process.host.is_cut_off = False
        attempt.healed_at = self._kernel.tasks.now
        attempt.changed.notify()

    def _to_files(self, fault: Fault, process: SimProcess | None) -> None:
        disk, tasks = self._kernel.disk, self._kernel.tasks
        longest = self._setup.limits.save_timeout_seconds
        match fault.kind:
            case "stop file":
                self._setup.run.stop_request.touch()
                now = EPOCH + tasks.now
                os.utime(self._setup.run.stop_request, (now, now))
                self._slurm.stop_asked()
                if self._attempt is not None:
                    self._must_stop(fault, self._attempt)
            case "full disk":
                disk.is_full = self._checks.may_lose_best = True
                tasks.after(200 * fault.amount, disk.mend)
            case "slow disk":
                disk.sync_seconds = max(disk.sync_seconds, 0.4 * fault.amount * longest)
                tasks.after(300 * fault.amount, disk.mend)
            case "damaged checkpoint":
                self._damage(fault)
            case "clock jump":
                host = self._slurm.hosts[fault.rank % len(self._slurm.hosts)]
                host.clock_error += (fault.amount - 0.5) * 7200
            case _:
                raise AssertionError(fault.kind)

    def _damage(self, fault: Fault) -> None:
        found = checkpoint.paths(self._setup.run.checkpoints)
        if len(found) < 2:  # with one alone nothing is left to go on from
            return
        files = sorted(found[0].iterdir())
        file = files[int(fault.amount * len(files))]
        self._kernel.disk.damage(file, self._chance)
        self._checks.damaged(checkpoint.step_of(found[0]))
