"""Ranks of a host that share a cache of remote shards, as one seed has it.

The code of `pipeline.data.cache` is the product's: which shard is fetched, kept and evicted, and
when. Only the command that fetches is a model. Files and their locks are real; what the ranks wait
for is virtual time.

Longer than 250 lines: the world of a cache is told from its draw to its faults.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, assert_never, cast, get_args
from unittest import mock

import numpy as np

from data_prep.shard_set.manifest import Split
from pipeline.config.data import DataConfig
from pipeline.config.order import waits
from pipeline.config.schema import Config
from pipeline.data.cache import cache_directory, remote, remote_shards
from pipeline.data.cache.remote_shards import RemoteShards
from pipeline.data.cache.shard_cache import ShardCache, cached_path
from pipeline.data.order.partition import BatchPlan, ShardShuffle, epoch_order
from pipeline.data.order.shard_needs import run_position, shards_at_once, training_needs
from tests.simulation.disk import Disk
from tests.simulation.kernel import Host, Kernel, SimProcess
from tests.simulation.network import Violation
from tests.simulation.tasks import Condition, Tasks
from tests.simulation.threads import SimThread, threading_of

ServerFault = Literal["it fails", "it forbids", "it is silent", "it cuts", "it damages"]
CacheFault = Literal[
    ServerFault, "kill", "kill at a call", "stop", "small disk", "full disk", "power cut"
]
_KINDS: tuple[CacheFault, ...] = get_args(CacheFault)
_SPAN_SECONDS = 30.0
"""In which faults begin."""
_RESTART_SECONDS = 3.0
_STEP_SECONDS = 1.0
_BLOCKS = 3
_MOST_SECONDS = 3000.0
"""After the last fault; nobody may wait longer for a shard than a fetch can take."""


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """What the seed has drawn."""

    config: DataConfig
    contents: list[bytes]
    """Of the shards."""
    split: Split
    plans: list[BatchPlan]
    """Of the jobs."""
    needed_bytes: int
    """That the jobs need at one time."""
    num_steps: int


def _draw(chance: random.Random, cache: Path) -> _Setting:
    lengths = tuple(chance.randint(3, 8) for _ in range(chance.randint(4, 10)))
    contents = [chance.randbytes(chance.randint(50, 200)) for _ in lengths]
    sizes = [len(content) for content in contents]
    split = SimpleNamespace(
        num_samples=sum(lengths),
        filenames=[f"train-{shard}.tar" for shard in range(len(lengths))],
        shard_lengths=lengths,
        shard_bytes=sizes,
        shard_sha256=[hashlib.sha256(content).hexdigest() for content in contents],
    )
    width = chance.choice([None, 1, 2, 3])
    plans, needed = [], 0
    for _ in range(chance.randint(1, 2)):
        num_ranks = chance.randint(1, 3)
        plan = BatchPlan(
            num_samples=sum(lengths),
            global_batch_size=num_ranks * chance.randint(1, 3),
            num_replicas=num_ranks,
            accumulation_steps=1,
            drop_last=True,
            shuffle=None if width is None else ShardShuffle(lengths, width),
        )
        # A rank may be a step ahead of another one.
        ahead = 2 * plan.global_batch_size
        num_needed = len(lengths) if width is None else shards_at_once(plan, ahead)
        needed += sum(sorted(sizes)[-num_needed:])
        plans.append(plan)
    enough = min(needed, sum(sizes))
    limit = chance.choice([None, enough, enough, enough + max(sizes), sum(sizes)])
    config = DataConfig(
        shards="https://server/set",
        reader="remote",
        cache_dir=str(cache),
        cache_bytes=limit,
        shuffle_shards=width,
        fetch_timeout_seconds=10.0,
        fetch_attempts=3,
    )
    return _Setting(
        config=config,
        contents=contents,
        split=cast(Split, split),
        plans=plans,
        needed_bytes=enough,
        num_steps=chance.randint(10, 30),
    )


@dataclass(eq=False)
class _Job:
    """Ranks that do the same steps together, from wherever the last attempt has come to."""

    number: int
    plan: BatchPlan
    ranks: list[SimProcess] = field(default_factory=list)
    steps_done: Counter[int] = field(default_factory=Counter)
    """By how many ranks of this attempt."""
    step: int = 0


class SharedCache:
    """One host, its jobs, and what must hold of what they do."""

    def __init__(self, seed: int, folder: Path, tasks: Tasks, say: Callable[[str], None]) -> None:
        self._tasks = tasks
        self._chance = chance = random.Random(seed)
        self._disk = disk = Disk(folder)
        self._folder = Path(disk.folder) / "cache" / "set"
        self._setting = _draw(chance, self._folder.parent)
        self._say = say
        self._kernel = Kernel(self._tasks, disk, say)
        self._kernel.on_change = self._look
        self._kernel.listeners.append(self._ended)
        self._host = Host("n0")
        self._changed = Condition(self._tasks)
        self._jobs = [_Job(number, plan) for number, plan in enumerate(self._setting.plans)]
        self._server_fault: ServerFault | None = None
        self._fetching: dict[int, SimProcess] = {}
        self._num_fetched = 0
        self._num_needs = 0
        self._reading: list[tuple[SimProcess, Path]] = []
        self._open: list[tuple[SimProcess, RemoteShards]] = []
        self._faults: list[CacheFault] = []
        self._excused_until = 0.0
        """Until then what goes wrong has a reason."""
        fetch = waits(Config(data=self._setting.config))["fetch"]
        self._patience = 2 * fetch + 2 * self._setting.config.fetch_timeout_seconds

    def run(self) -> None:
        """Raises `Violation`, or what a rank raises that no fault excuses."""
        chance = self._chance
        with self._kernel.entered(), self._stand_ins():
            self._folder.mkdir(parents=True)
            try:
                for _ in range(chance.randint(0, 6)):
                    kind, time = chance.choice(_KINDS), chance.uniform(0, _SPAN_SECONDS)
                    self._faults.append(kind)
                    self._tasks.at(time, partial(self._happen, kind, chance.random()))
                for job in self._jobs:
                    self._start(job)
                self._tasks.run(self._is_done, _SPAN_SECONDS + _MOST_SECONDS)
                # In one of just that size what is read at once drives out what is staged ahead.
                is_roomy = self._setting.config.cache_bytes != self._setting.needed_bytes
                if is_roomy and not self._faults and self._num_fetched > self._num_needs:
                    raise Violation(f"{self._num_fetched} fetches for {self._num_needs} needs")
            finally:
                self._tasks.close()

    @contextmanager
    def _stand_ins(self) -> Iterator[None]:
        with ExitStack() as stack:
            for module, name, value in (
                (remote_shards, "threading", threading_of(self._tasks)),
                (remote, "random", self._chance),
                (remote, "_output", self._fetched),
            ):
                stack.enter_context(mock.patch.object(module, name, value))
            opened = mock.patch.object(cache_directory, "open", self._kernel.adopt, create=True)
            stack.enter_context(opened)
            yield

    def _is_done(self) -> bool:
        return all(job.step == self._setting.num_steps and not job.ranks for job in self._jobs)

    # The jobs

    def _start(self, job: _Job) -> None:
        setting = self._setting
        job.steps_done.clear()
        if job.step == setting.num_steps:
            return
        self._say(f"job {job.number} begins after step {job.step}")
        needs = training_needs(
            job.plan, setting.split.shard_lengths, job.number, job.step, setting.num_steps
        )
        self._num_needs += len(list(needs))
        for rank in range(job.plan.num_replicas):
            process = self._kernel.new_process(f"rank {rank} of job {job.number}", self._host)
            job.ranks.append(process)
            self._kernel.run(process, partial(self._main, job, rank, process))

    def _ended(self, process: SimProcess) -> None:
        """As torchrun does: one that fails ends all, and they begin again."""
        self._changed.notify()
        job = next((job for job in self._jobs if process in job.ranks), None)
        if job is None:
            return
        if process.code == 0:
            job.ranks.remove(process)
            return
        self._say(f"{process.name} has ended with {process.code}")
        self._tasks.after(0.0, partial(self._begin_again, job, job.ranks))
        job.ranks = []

    def _begin_again(self, job: _Job, ranks: list[SimProcess]) -> None:
        for process in ranks:
            self._kernel.send(process, signal.SIGKILL)
        self._tasks.after(_RESTART_SECONDS, partial(self._start, job))

    def _main(self, job: _Job, rank: int, process: SimProcess) -> int:
        setting = self._setting
        shards = RemoteShards(ShardCache(setting.config), self._folder, setting.split)
        self._open.append((process, shards))
        lengths = setting.split.shard_lengths
        needs = training_needs(job.plan, lengths, job.number, job.step, setting.num_steps)
        shards.expect(needs)
        try:
            for step in range(job.step, setting.num_steps):
                shards.passed(run_position(job.plan, step))
                self._read_batch(job, rank, step, shards)
                self._tasks.sleep(_STEP_SECONDS)
                job.steps_done[step] += 1
                self._changed.notify()
                self._changed.wait(partial(self._have_all, job, step))
                job.step = step + 1
        except Violation as violation:
            self._tasks.error = violation  # whatever closing comes to
            raise
        except OSError as error:
            self._say(f"{process.name}: {error}")
            if self._tasks.now > self._excused_until:
                raise Violation(f"{error}, and nothing is wrong") from error
            return 1
        finally:
            shards.close()
        return 0

    def _have_all(self, job: _Job, step: int) -> bool:
        return job.steps_done[step] == job.plan.num_replicas

    def _read_batch(self, job: _Job, rank: int, step: int, shards: RemoteShards) -> None:
        """With two threads, as a reader does."""
        plan, lengths = job.plan, self._setting.split.shard_lengths
        order = epoch_order(plan.num_samples, job.number, plan.epoch_of(step), plan.shuffle)
        places = plan.positions(step, 0, rank)
        samples = order[places.start : places.stop]
        wanted = np.searchsorted(np.cumsum(lengths), samples, side="right").tolist()
        errors: list[OSError] = []

        def read(some: list[int]) -> None:
            try:
                for shard in some:
                    self._read(shard, shards)
            except OSError as error:
                errors.append(error)

        other = SimThread(self._tasks, self._tasks.running().process, partial(read, wanted[1::2]))
        other.start()
        read(wanted[::2])
        other.join()
        for error in errors:
            raise error

    def _read(self, shard: int, shards: RemoteShards) -> None:
        process, begin = cast(SimProcess, self._tasks.running().process), self._tasks.now
        path = cached_path(self._folder, self._setting.split.filenames[shard])
        with shards.reading(shard) as file:
            waited = self._tasks.now - begin
            if waited > self._patience and begin > self._excused_until:
                raise Violation(f"{process.name} has waited {waited:.0f} s for shard {shard}")
            use = process, path
            self._reading.append(use)
            self._tasks.sleep(self._chance.uniform(0.01, 0.3))
            if os.pread(file, 1000, 0) != self._setting.contents[shard]:
                raise Violation(f"{process.name} reads something else than shard {shard}")
            self._reading.remove(use)

    # What must hold

    def _look(self, path: str) -> None:
        """After a change of the cache."""
        if not os.path.lexists(path):
            users = [process for process, used in self._reading if str(used) == path]
            for process, shards in self._open:
                held = [self._setting.split.filenames[shard] for shard in shards._in_use]
                users += [process] * (Path(path).name in held)
            if any(not process.is_dead for process in users):
                raise Violation(f"{Path(path).name} is evicted, and somebody reads it")
        limit = self._setting.config.cache_bytes
        with os.scandir(self._folder) as found:
            used = sum(one.stat().st_size for one in found if not one.name.startswith(".lock-"))
        if limit is not None and used > limit:
            raise Violation(f"the cache has {used} bytes, and {limit} are allowed")

    # What fetches

    def _fetched(
        self, location: str, timeout_seconds: float, stop: Any, lasting: Collection[str]
    ) -> Generator[bytes]:
        """`remote._output`."""
        shard = self._setting.split.filenames.index(location.rpartition("/")[2])
        process = cast(SimProcess, self._tasks.running().process)
        if (other := self._fetching.get(shard)) is not None and not other.is_dead:
            raise Violation(f"{process.name} fetches shard {shard}, and so does {other.name}")
        self._fetching[shard] = process
        try:
            content = self._setting.contents[shard]
            size = -(-len(content) // _BLOCKS)
            for begin in range(0, len(content), size):
                fault = self._server_fault
                seconds = self._chance.uniform(0.05, 0.5)
                if stop.wait(timeout_seconds if fault == "it is silent" else seconds):
                    raise remote.FetchStopped("the fetch was stopped")
                match fault:
                    case None:
                        yield content[begin : begin + size]
                    case "it fails":
                        raise remote._Fault("returned error: 503")
                    case "it forbids":
                        raise remote._LastingFault("returned error: 403")
                    case "it is silent":
                        raise remote._Fault("no byte came")
                    case "it cuts":
                        break
                    case "it damages":
                        yield bytes(byte ^ 1 for byte in content[begin : begin + size])
                    case unknown:
                        assert_never(unknown)
            self._num_fetched += 1
            self._say(f"{process.name} has fetched shard {shard}")
        finally:
            self._fetching.pop(shard, None)

    # What breaks

    def _happen(self, kind: CacheFault, amount: float) -> None:
        seconds = 40 * amount
        ranks = [process for job in self._jobs for process in job.ranks]
        process = ranks[int(amount * len(ranks))] if ranks else None
        self._say(f"{kind}{'' if process is None else f' ({process.name})'}")
        match kind:
            case "kill" | "kill at a call" | "stop":
                if process is not None:
                    self._hit(kind, process, seconds)
            case "it fails" | "it forbids" | "it is silent" | "it cuts" | "it damages":
                seconds /= 4
                self._server_fault = kind
                self._excuse(seconds)
                self._tasks.after(seconds, self._mend)
            case "small disk":  # others use it; the jobs still have what they need
                self._disk.capacity = self._setting.needed_bytes
                self._tasks.after(seconds, self._mend)
            case "full disk":
                self._disk.is_full = True
                self._excuse(seconds)
                self._tasks.after(seconds, self._mend)
            case "power cut":
                for one in ranks:
                    self._kernel.send(one, signal.SIGKILL)
                self._disk.lose_power(self._chance)
            case unknown:
                assert_never(unknown)

    def _hit(self, kind: CacheFault, process: SimProcess, seconds: float) -> None:
        if kind == "kill":
            self._kernel.send(process, signal.SIGKILL)
        elif kind == "kill at a call":
            process.calls_left = int(seconds)
        else:
            self._kernel.send(process, signal.SIGSTOP)
            self._excuse(seconds)
            self._tasks.after(seconds, partial(self._kernel.send, process, signal.SIGCONT))

    def _excuse(self, seconds: float) -> None:
        self._excused_until = max(self._excused_until, self._tasks.now + seconds + self._patience)

    def _mend(self) -> None:
        self._server_fault = None
        self._disk.mend()
        self._disk.capacity = None
