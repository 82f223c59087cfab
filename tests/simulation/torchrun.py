"""A model of torchrun, one agent a host, and of the `srun` that starts the agents.

srun hears no signal until it starts the agents, which begin as `pipeline.start_ranks` does. They
meet for every round. A rank that fails ends all ranks of its host: by SIGTERM, and by SIGKILL once
torchrun's patience is over. Then its agent asks for another round, as often as --max-restarts says,
which the others join without counting it. An agent that gives up ends the job
(`srun --kill-on-bad-exit`).
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from pipeline import start_ranks
from pipeline.config.timeouts import EXIT_BARRIER_SECONDS
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.run.ending import STOP_SIGNALS
from pipeline.run.lock import JobStart
from tests.simulation.kernel import Host, Kernel, SimProcess
from tests.simulation.network import Attempt, Layout
from tests.simulation.ranks import Notes, RankProgram, RunSetup
from tests.simulation.tasks import Condition

_STARTING_SECONDS = 1.5
"""What srun takes to start the agents."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a job script gives to torchrun."""

    layout: Layout
    max_restarts: int
    shutdown_seconds: float
    start: JobStart
    environment: dict[str, str]
    """Variables of all its processes."""


@dataclass(eq=False)
class _Agent:
    process: SimProcess
    host: Host
    workers: list[SimProcess] = field(default_factory=list)
    num_restarts: int = 0
    asked: int | None = None
    """The signal it got."""
    has_joined: int = -1
    """The round that it is in."""


class Torchrun:
    """The agents of one job, and its ranks."""

    def __init__(
        self,
        kernel: Kernel,
        hosts: list[Host],
        launch: Launch,
        setup: RunSetup,
        notes: Notes,
        chance: random.Random,
    ) -> None:
        self._kernel = kernel
        self._launch = launch
        self._setup = setup
        self._notes = notes
        self._chance = chance
        self._changed = Condition(kernel.tasks)
        self._begin = kernel.tasks.now + _STARTING_SECONDS
        self._round = 0
        """The round that the agents are asked for."""
        self.attempt: Attempt | None = None
        self._attempt_round = -1
        self.on_attempt: Callable[[Attempt], None] = lambda _: None
        kernel.listeners.append(lambda _: self._changed.notify())
        self.agents = [
            _Agent(kernel.new_process(f"torchrun on {host.name}", host), host) for host in hosts
        ]
        for agent in self.agents:
            self._start(agent)

    def _start(self, agent: _Agent) -> None:
        def on_signal(number: int, _: None) -> None:
            agent.asked = number
            self._changed.notify()

        def main() -> int:
            self._kernel.tasks.sleep(_STARTING_SECONDS)
            for number in STOP_SIGNALS:
                agent.process.handlers[number] = on_signal
            return start_ranks.main([])

        agent.process.environment = self._launch.environment
        agent.process.program = partial(self._attend, agent)
        self._kernel.run(agent.process, main)

    @property
    def is_deaf(self) -> bool:
        """Whether srun hears no signal yet."""
        return self._kernel.tasks.now < self._begin

    @property
    def is_over(self) -> bool:
        return all(agent.process.is_dead for agent in self.agents)

    @property
    def has_lost_host(self) -> bool:
        return any(agent.host.is_down or agent.host.is_cut_off for agent in self.agents)

    @property
    def workers(self) -> list[SimProcess]:
        return [worker for agent in self.agents for worker in agent.workers]

    def signal(self, number: int) -> None:
        if self.is_deaf:
            return
        for agent in self.agents:
            if not agent.host.is_down:
                self._kernel.send(agent.process, number)

    def kill(self, *, everywhere: bool = False) -> None:
        """All processes of the job, on hosts that can be reached, or on all."""
        for agent in self.agents:
            if everywhere or not agent.host.is_cut_off:
                for process in (agent.process, *agent.workers):
                    self._kernel.end(process, -signal.SIGKILL)

    def exit_codes(self) -> list[int]:
        return [agent.process.code or 0 for agent in self.agents if agent.process.is_dead]

    def _attend(self, agent: _Agent) -> int:
        """One agent, until its ranks are done, fail too often, or it is asked to leave."""
        while True:
            agent.has_joined = self._round
            if not self._meet(agent):
                return 75
            my_round = self._round
            self._start_workers(agent)
            self._changed.wait(partial(self._is_event, agent, my_round))
            if agent.asked is not None:
                self._end_workers(agent, agent.asked)
                return 128 + agent.asked
            codes = [worker.code or 0 for worker in agent.workers if worker.is_dead]
            if len(codes) == len(agent.workers) and not any(codes):
                self._changed.wait(self._are_all_done, EXIT_BARRIER_SECONDS)
                return 0
            self._end_workers(agent, signal.SIGTERM)
            if any(codes):
                if agent.num_restarts == self._launch.max_restarts:
                    killed = [code for code in codes if code < 0]
                    return 128 - max(killed) if killed else next(filter(None, codes))
                agent.num_restarts += 1
                if self._round == my_round:
                    self._round += 1
                    self._changed.notify()

    def _meet(self, agent: _Agent) -> bool:
        """Join the round together with all other agents; False if some does not come."""

        def are_all_there() -> bool:
            return all(other.has_joined == self._round for other in self.agents)

        if agent.asked is not None:
            return False
        self._changed.notify()
        is_there = self._changed.wait(lambda: are_all_there() or agent.asked is not None, 600.0)
        return is_there and agent.asked is None

    def _are_all_done(self) -> bool:
        return all(worker.is_dead for worker in self.workers)

    def _is_event(self, agent: _Agent, my_round: int) -> bool:
        codes = [worker.code for worker in agent.workers if worker.is_dead]
        return (
            agent.asked is not None
            or self._round != my_round
            or any(codes)
            or len(codes) == len(agent.workers)
        )

    def _start_workers(self, agent: _Agent) -> None:
        layout = self._launch.layout
        if self.attempt is None or self._attempt_round != self._round:
            is_warm = self._setup.limits.warm_restarts > 0
            self.attempt = Attempt(self._kernel, layout, self._chance, is_warm=is_warm)
            self._attempt_round = self._round
            self.on_attempt(self.attempt)
        agent.workers = []
        for local_rank, rank in enumerate(layout.hosts[self.agents.index(agent)]):
            parent = agent.process.pid
            name = f"supervisor of rank {rank}" if self.attempt.is_warm else f"rank {rank}"
            worker = self._kernel.new_process(name, agent.host, parent)
            worker.environment = self._launch.environment
            agent.workers.append(worker)
            self.attempt.processes[rank] = worker
            environment = LaunchEnvironment(
                rank=rank,
                local_rank=local_rank,
                world_size=layout.size,
                local_world_size=len(agent.workers),
                attempt=agent.num_restarts,
                max_attempts=self._launch.max_restarts,
                start=self._launch.start,
                is_launched=True,
                agent=parent,
            )
            self._run_worker(worker, self.attempt, environment)

    def _run_worker(
        self, worker: SimProcess, attempt: Attempt, environment: LaunchEnvironment
    ) -> None:
        def main() -> int:
            self._kernel.tasks.sleep(self._chance.uniform(1.0, 5.0))  # imports
            return RankProgram(self._kernel, attempt, self._setup, environment, self._notes).main()

        self._kernel.run(worker, main)

    def _end_workers(self, agent: _Agent, number: int) -> None:
        for worker in agent.workers:
            self._kernel.send(worker, number)

        def are_gone() -> bool:
            return all(worker.is_dead for worker in agent.workers)

        if not self._changed.wait(are_gone, self._launch.shutdown_seconds):
            for worker in agent.workers:
                self._kernel.send(worker, signal.SIGKILL)


def orphan(agent: SimProcess, workers: list[SimProcess], kernel: Kernel) -> None:
    """Kill the agent: its ranks get another parent."""
    for worker in workers:
        if worker.parent == agent.pid:
            worker.parent = 1
    kernel.end(agent, -signal.SIGKILL)
