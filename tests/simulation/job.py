"""A model of SLURM and of the job script `launch/train.sbatch.in`; the decision is the product's.

The script asks `launch.outcome` how the job has left the run, and requeues it if it was
interrupted, at most as often as `--max-requeues` says. SLURM itself requeues a job that has lost a
host.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, assert_never

from launch.outcome import is_new_run, outcome_of
from pipeline.config.timeouts import OUTCOME_SECONDS, REQUEUE_PAUSES
from pipeline.ranks.stop import JOB_BEGIN
from pipeline.run import checkpoint
from pipeline.run.ending import ASKED_VARIABLE, JobOutcome, StopSource
from pipeline.run.event_log import end_of, of_type, read_events
from pipeline.run.events import Event, RunEvent, SignalEvent
from pipeline.run.lock import JobStart
from tests.simulation.checks import KILL_WAIT_SECONDS
from tests.simulation.kernel import EPOCH, Host, Kernel
from tests.simulation.network import Attempt, Layout, Violation
from tests.simulation.ranks import Notes, RunSetup
from tests.simulation.tasks import Condition, Process
from tests.simulation.torchrun import Launch, Torchrun

_REQUEUE_SECONDS = 30.0
_PROLOGUE_SECONDS = 0.5

JobEnd = JobOutcome | Literal["too often"]
"""How a job was left for good; too often: it was interrupted more often than it is queued again."""


@dataclass(frozen=True, kw_only=True)
class JobSetup:
    """What sbatch is told."""

    layout: Layout
    max_restarts: int
    max_requeues: int
    time_limit: float
    signal_lead: float
    shutdown_seconds: float


class Slurm:
    """Starts a job again and again, as its script and its hosts have it."""

    def __init__(
        self,
        kernel: Kernel,
        hosts: list[Host],
        setup: RunSetup,
        job: JobSetup,
        notes: Notes,
        chance: random.Random,
        say: Callable[[str], None],
    ) -> None:
        self._kernel, self.hosts, self._setup, self._job = kernel, hosts, setup, job
        self._notes, self._chance, self._say = notes, chance, say
        self._numbers = itertools.count(1)
        self._changed = Condition(kernel.tasks)
        self._has_lost_host = False
        self._is_preempted = False
        self.may_be_interrupted = False
        self._stop_asked_at = -math.inf
        """When a person has asked the newest job to leave, Unix seconds."""
        self.starts: list[Torchrun] = []
        self.on_attempt: Callable[[Attempt], None] = lambda _: None
        self.outcomes: list[JobEnd] = []
        self.next_signal = math.inf
        """When SLURM will warn that time runs out."""
        self.num_requeues = 0
        """Of the job at work."""
        kernel.listeners.append(lambda _: self._changed.notify())

    @property
    def torchrun(self) -> Torchrun | None:
        """The newest start of a job."""
        return self.starts[-1] if self.starts else None

    def lose_host(self) -> None:
        """SLURM finds a host of the job down: it ends the job, and queues it again."""
        self._has_lost_host = True
        self._changed.notify()

    def lose_host_if_gone(self) -> None:
        torchrun = self.torchrun
        if torchrun is not None and not torchrun.is_over and torchrun.has_lost_host:
            self.lose_host()

    def preempt(self) -> None:
        """With a grace time: only the ranks get the signal, and the script sees it afterwards."""
        self._is_preempted = self.may_be_interrupted = True
        if self.torchrun is not None:
            self.torchrun.signal(signal.SIGTERM)

    def stop_asked(self) -> None:
        """A person has made the file STOP."""
        self.may_be_interrupted = True
        self._stop_asked_at = EPOCH + self._kernel.tasks.now

    def give_more_time(self) -> None:
        """To the jobs from now on."""
        self._job = dataclasses.replace(self._job, time_limit=2 * self._job.time_limit)

    def attend(self, process: Process, after: Callable[[JobEnd], None]) -> None:
        """Run a new job in a task of `process`, through all its starts."""
        number = str(next(self._numbers))

        def body() -> None:
            end = self._starts_of(number)
            self.outcomes.append(end)
            after(end)

        self._kernel.tasks.start(process, body)

    def _starts_of(self, number: str) -> JobEnd:
        tasks = self._kernel.tasks
        for restart in itertools.count():
            self.num_requeues = restart
            self._say(f"job {number}, start {restart + 1}")
            outcome = self._one_start(JobStart(job=number, number=restart))
            match outcome:
                case "lost host":
                    pass
                case "interrupted":
                    if restart >= self._job.max_requeues:
                        return "too often"
                case "completed" | "stopped" | "stuck" | "failed":
                    return outcome
                case unknown:
                    assert_never(unknown)
            tasks.sleep(_REQUEUE_SECONDS)
        raise AssertionError

    def _one_start(self, start: JobStart) -> JobOutcome | Literal["lost host"]:
        """`train.sbatch.in`, once."""
        tasks, job = self._kernel.tasks, self._job
        self._has_lost_host = self._is_preempted = self.may_be_interrupted = False
        hosts = [host for host in self.hosts if not host.is_down and not host.is_cut_off]
        begin = float(int(EPOCH + tasks.now + hosts[0].clock_error))
        started, before = tasks.now, self._newest()
        if start.number == 0 and self._stop_asked_at < begin:  # which has whole seconds
            self._stop_asked_at = -math.inf  # it is for no new job
        num_bytes = end_of(self._setup.run.events)
        request = self._setup.run.path / f".asked-{start.job}"
        request.unlink(missing_ok=True)
        tasks.sleep(_PROLOGUE_SECONDS)
        launch = Launch(
            layout=job.layout,
            max_restarts=job.max_restarts,
            shutdown_seconds=job.shutdown_seconds,
            start=start,
            environment={JOB_BEGIN: str(begin), ASKED_VARIABLE: str(request)},
        )
        torchrun = Torchrun(
            self._kernel, hosts[: self._num_hosts], launch, self._setup, self._notes, self._chance
        )
        torchrun.on_attempt = self.on_attempt
        self.starts.append(torchrun)
        asked = self._wait_for_end(torchrun, started, request)
        if self._has_lost_host:
            self._say("SLURM has lost a host of the job")
            return "lost host"
        asked = StopSource.SIGTERM if self._is_preempted else asked
        code = max(torchrun.exit_codes(), default=1)
        rows = read_events(self._setup.run.events, num_bytes)
        outcome = outcome_of(rows, code, asked, is_new=is_new_run(self._setup.run))
        self._say(f"outcome: {outcome} (code {code}, asked {asked})")
        if outcome == "interrupted" and not self.may_be_interrupted:
            raise Violation("the job is queued again, and nothing had asked it to leave")
        self._check(outcome, asked, read_events(self._setup.run.events), before)
        return outcome

    def _newest(self) -> int:
        found = checkpoint.paths(self._setup.run.checkpoints)
        return checkpoint.step_of(found[0]) if found else 0

    def _check(
        self, outcome: JobEnd, asked: StopSource | None, history: list[Event], before: int
    ) -> None:
        """What a job must not say of itself."""
        signals = of_type(history, SignalEvent)
        is_heeded = bool(signals) and signals[-1] in history[-2:]
        by_person = is_heeded and signals[-1].source == StopSource.STOP_FILE
        if outcome == "interrupted" and by_person:
            raise Violation("a person has stopped the run, and it is queued again")
        is_clock_right = not any(host.clock_error for host in self.hosts)
        if outcome == "stopped" and self._stop_asked_at < 0 and is_clock_right:
            raise Violation("the run has stopped for a file STOP that was older than the job")
        begun = of_type(history, RunEvent)[-1:]
        since = min([before, *(row.resumed_from or 0 for row in begun)])
        is_in_vain = asked is StopSource.SIGUSR1 and self._newest() <= since
        if outcome == "interrupted" and is_in_vain:
            raise Violation("the job is queued again, and had too little time to save a step")

    @property
    def _num_hosts(self) -> int:
        return len(self._job.layout.hosts)

    def _wait_for_end(self, torchrun: Torchrun, started: float, request: Path) -> StopSource | None:
        """`attend` and `ask` of the script, with SLURM's time limit and `--kill-on-bad-exit`."""
        tasks, job = self._kernel.tasks, self._job
        asked: StopSource | None = None
        warn_at, end_at = started + job.time_limit - job.signal_lead, started + job.time_limit

        self.next_signal = warn_at

        def is_event() -> bool:
            return torchrun.is_over or self._has_lost_host or any(torchrun.exit_codes())

        if not self._changed.wait(is_event, warn_at - tasks.now):
            asked = StopSource.SIGUSR1
            self.may_be_interrupted = True
            self._say("time runs out")
            is_early = torchrun.is_deaf
            request.touch()
            torchrun.signal(signal.SIGUSR1)
            self._changed.wait(is_event, end_at - tasks.now)
            if is_early and torchrun.attempt is not None:
                raise Violation("the job was asked to leave before its ranks started, and they do")
            queued_by = tasks.now + OUTCOME_SECONDS + sum(REQUEUE_PAUSES)
            if queued_by > end_at and not self._has_lost_host and not torchrun.has_lost_host:
                raise Violation("the job may be killed before it is queued again")
        if not torchrun.is_over and not self._has_lost_host:
            torchrun.signal(signal.SIGTERM)
            self._changed.wait(lambda: torchrun.is_over, KILL_WAIT_SECONDS)
        torchrun.kill()
        return asked
