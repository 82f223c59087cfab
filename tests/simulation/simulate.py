"""One simulated run, from its seed to its end; the same seed is the same run.

Longer than 250 lines: what a seed draws is to be read beside who runs it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import math
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pipeline.config.order import Measured, Surroundings, check_waits
from pipeline.config.schema import CheckpointConfig, Config, DistributedConfig
from pipeline.config.timeouts import shutdown_seconds
from pipeline.data.order.partition import BatchPlan
from pipeline.run.directory import RunDirectory
from tests.simulation.cache import SharedCache
from tests.simulation.checks import KILL_WAIT_SECONDS, SYNCS_OF_A_SAVE, Checks
from tests.simulation.disk import Disk
from tests.simulation.doors import opened
from tests.simulation.faults import Fault, Faults, draw, draw_losses
from tests.simulation.job import JobEnd, JobSetup, Slurm
from tests.simulation.kernel import Host, Kernel
from tests.simulation.network import Attempt, Layout, Violation
from tests.simulation.ranks import Notes, RunSetup
from tests.simulation.tasks import Process, Tasks

MEMORY = Path("/dev/shm")
"""Where simulated disks are, if it is there: it is fast, and forgets them at the latest at boot."""
_MAX_SECONDS = 1e8
_LINE = 400
_SETTLING_SECONDS = 60.0
_REPAIR_SECONDS = 60.0


@dataclass
class Story:
    """What happened, line by line."""

    lines: list[str] = field(default_factory=list)
    fault: str | None = None
    """What was found to be wrong; None: nothing."""

    def told(self, tasks: Tasks, folder: Path, text: str) -> None:
        """Add a line."""
        text = text.replace(str(folder), "")[:_LINE]
        self.lines.append(f"{tasks.now:9.2f}  {text}")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the seed has drawn."""

    job: JobSetup
    setup: RunSetup
    faults: list[Fault]
    max_jobs: int = 30
    """After so many the run must be complete."""

    def warnings(self) -> list[str]:
        """What the product says of its waits."""
        job, setup = self.job, self.setup
        around = Surroundings(
            shutdown=job.shutdown_seconds,
            grace=job.signal_lead,
            kill_wait=KILL_WAIT_SECONDS,
            is_requeued=True,
        )
        save = SYNCS_OF_A_SAVE * setup.sync_seconds
        measured = Measured(step=setup.step_seconds, evaluation=setup.step_seconds, save=save)
        return check_waits(setup.config, around, measured)


SettingOf = Callable[[int, RunDirectory], Setting]


def small_world(seed: int, run: RunDirectory) -> Setting:
    """A small world, and what breaks in it."""
    chance = random.Random(seed)
    hosts, ranks_per_host = chance.choice([(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 1)])
    num_ranks = hosts * ranks_per_host
    local_batch_size = chance.randint(1, 3)
    global_batch_size = num_ranks * local_batch_size
    steps_per_epoch = chance.randint(3, 12)
    num_samples = steps_per_epoch * global_batch_size
    if chance.random() < 0.5:  # a smaller last batch
        num_samples += chance.randint(num_ranks, global_batch_size)
    plan = BatchPlan(
        num_samples=num_samples,
        global_batch_size=global_batch_size,
        num_replicas=num_ranks,
        accumulation_steps=1,
        drop_last=False,
    )
    target_steps = chance.randint(10, 40)
    step_seconds = chance.choice([0.1, 1.0, 10.0])
    timeout = chance.choice([20.0, 60.0])
    config = Config(
        distributed=DistributedConfig(timeout_seconds=timeout, save_timeout_seconds=2 * timeout),
        checkpoint=CheckpointConfig(keep=chance.randint(2, 3), background=chance.random() < 0.75),
        seed=seed,
    )
    length = 60.0 + 1.5 * target_steps * step_seconds
    lead = int(2 * timeout) + 100
    setup = RunSetup(
        run=run,
        plan=plan,
        config=config,
        target_steps=target_steps,
        step_seconds=step_seconds,
        sync_seconds=chance.choice([0.01, min(0.9, step_seconds)]),
        save_every=chance.randint(2, 10),
        evaluate_every=chance.randint(3, 12),
    )
    job = JobSetup(
        layout=Layout.of(hosts, ranks_per_host),
        max_restarts=chance.randint(0, 3),
        max_requeues=chance.randint(1, 4),
        time_limit=lead + chance.choice([0.03, 0.3, 1.0, 3.0]) * length,
        signal_lead=lead,
        shutdown_seconds=shutdown_seconds(lead, is_requeued=True),
    )
    return Setting(job=job, setup=setup, faults=draw(chance, num_ranks, length))


def warm_world(seed: int, run: RunDirectory) -> Setting:
    """The same with supervisors, in which ranks are lost, often two at once."""
    setting, chance = small_world(seed, run), random.Random(-seed - 1)
    limits = dataclasses.replace(setting.setup.limits, warm_restarts=chance.choice([1, 3, 20]))
    config = dataclasses.replace(setting.setup.config, distributed=limits)
    setup = dataclasses.replace(setting.setup, config=config)
    length = setup.target_steps * setup.step_seconds
    faults = draw_losses(chance, setup.plan.num_replicas, 30.0 + length)
    return dataclasses.replace(setting, setup=setup, faults=faults)


class Simulation:
    """One run with its hosts, its faults, and the person who submits it until it is complete."""

    def __init__(self, seed: int, folder: Path, setting_of: SettingOf, story: Story) -> None:
        self._tasks = Tasks()
        self.say = partial(story.told, self._tasks, folder)
        disk = Disk(folder)
        run = RunDirectory(Path(disk.folder))
        self._setting = setting = setting_of(seed, run)
        disk.usual_sync_seconds = disk.sync_seconds = setting.setup.sync_seconds
        self._kernel = Kernel(self._tasks, disk, self.say)
        chance = random.Random(seed ^ 0x5EED)
        # One more than needed: where one is down, another takes its place.
        hosts = [Host(f"n{number}") for number in range(len(setting.job.layout.hosts) + 1)]
        self._checks = Checks(self._kernel, setting.setup, self.say)
        notes = Notes(
            saved=self._checks.saved,
            resumed=self._checks.resumed,
            left=self._checks.left,
            at=lambda rank, phase: self._faults.at(rank, phase),
        )
        self._slurm = Slurm(
            self._kernel, hosts, setting.setup, setting.job, notes, chance, self.say
        )
        self._slurm.on_attempt = self._watch
        self._faults = Faults(
            self._kernel, setting.setup, setting.job, self._slurm, self._checks, chance
        )
        self._person = Process("person")
        self._num_jobs = 0
        self._is_done = False

    def _watch(self, attempt: Attempt) -> None:
        self._kernel.on_error = lambda _, text: self._checks.spoken(attempt, text)
        attempt.quiet_until = partial(self._next_event, attempt)
        attempt.on_word = lambda key, word: self._checks.word(attempt, key, word)

    def _next_event(self, attempt: Attempt) -> float:
        """When something will happen; now, if the last thing may not be over.

        Ranks that begin heed what they were asked before.
        """
        now = self._tasks.now
        times = [fault.time for fault in self._setting.faults]
        times += self._slurm.next_signal, attempt.begun_at
        if any(time <= now < time + _SETTLING_SECONDS for time in times):
            return now
        return min((time for time in times if time > now), default=math.inf)

    def run(self) -> None:
        """Raises `Violation` and whatever else is wrong."""
        with self._kernel.entered(), opened(self._kernel), _quiet(_Lines(self.say)):
            try:
                self._faults.schedule(self._setting.faults)
                self._submit()
                self._tasks.run(lambda: self._is_done, _MAX_SECONDS)
                self._checks.done()
            finally:
                self._tasks.close()

    def _submit(self) -> None:
        self._num_jobs += 1
        if self._num_jobs > self._setting.max_jobs:
            raise Violation(f"{self._num_jobs} jobs do not complete the run")
        self._slurm.attend(self._person, self._after_job)

    def _after_job(self, end: JobEnd) -> None:
        """The person looks after it, and submits it again until the run is complete."""
        self.say(f"the job ends: {end}")
        if end == "completed":
            self._is_done = True
            return
        if end == "stuck":
            self._slurm.give_more_time()
        self._kernel.disk.mend()
        for host in self._slurm.hosts:
            host.is_down = host.is_cut_off = False
        for start in self._slurm.starts:
            start.kill()
        self._tasks.after(_REPAIR_SECONDS, self._submit)


class _Lines(io.StringIO):
    """What the product writes to standard error."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say

    def write(self, text: str) -> int:
        for line in text.splitlines():
            self._say(line)
        return len(text)


@contextlib.contextmanager
def _quiet(lines: _Lines) -> Iterator[None]:
    """What is written goes into the story."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(lines), contextlib.redirect_stdout(lines):
            yield
    finally:
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def _finding(story: Story) -> Iterator[Path]:
    """A folder for a simulation; what is wrong goes into its story."""
    memory = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory, prefix="simulation-") as folder:
        try:
            yield Path(folder)
        except (Exception, Violation) as error:
            story.fault = f"{type(error).__name__}: {error}"


def simulate(seed: int, setting_of: SettingOf = small_world) -> Story:
    """Run one seed; what is wrong is in its story."""
    story = Story()
    with _finding(story) as folder:
        Simulation(seed, folder, setting_of, story).run()
    return story


def simulate_cache(seed: int) -> Story:
    """The same for ranks that share a cache of remote shards."""
    story = Story()
    with _finding(story) as folder:
        tasks = Tasks()
        say = partial(story.told, tasks, folder)
        with _quiet(_Lines(say)):
            SharedCache(seed, folder, tasks, say).run()
    return story
