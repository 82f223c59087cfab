"""What must hold in every simulated run, whatever breaks."""

from __future__ import annotations

import itertools
import json
import re
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.config.order import waits
from pipeline.data.order.partition import epoch_order
from pipeline.run import checkpoint
from pipeline.run.ending import EndOutcome
from pipeline.run.phase import Phase
from pipeline.train.progress import Progress
from tests.simulation.kernel import Kernel
from tests.simulation.network import Attempt, Violation
from tests.simulation.ranks import RunSetup, top1_of

KILL_WAIT_SECONDS = 30.0
"""SLURM's, from SIGTERM to SIGKILL."""
SYNCS_OF_A_SAVE = 6
_ACCUSED = re.compile(r"rank (\d+)(?: on \S+)? (?:hangs|gives no sign of life)")


def due_samples(setup: RunSetup) -> tuple[np.ndarray[tuple[int], np.dtype[np.int32]], int]:
    """How often each sample is seen in an undisturbed run, and the digest of its steps."""
    plan, digest = setup.plan, 0
    seen = np.zeros(plan.num_samples, np.int32)
    for step in range(setup.target_steps):
        epoch, within = divmod(step, plan.steps_per_epoch)
        order = epoch_order(plan.num_samples, setup.seed, epoch)
        if len(np.unique(order)) != plan.num_samples:
            raise Violation(f"epoch {epoch} has not every sample once")
        begin = within * plan.global_batch_size
        samples = np.sort(order[begin : begin + plan.global_batch_size])
        seen[samples] += 1
        digest = zlib.crc32(samples.tobytes(), digest)
    return seen, digest


class Checks:
    """Watches one run."""

    def __init__(self, kernel: Kernel, setup: RunSetup, say: Callable[[str], None]) -> None:
        self._kernel, self._setup, self.say = kernel, setup, say
        self._promised: set[int] = set()
        """Steps of checkpoints that were announced, and that no fault has damaged since."""
        self._damaged: set[int] = set()
        """Since the ranks began."""
        self._best: int | None = None
        """The step of the best checkpoint, as it was last announced or found."""
        self.may_lose_best = False
        """The disk was full: what was better than the best checkpoint may not be saved."""
        self._has_left = False
        """The ranks of the newest attempt have ended, and have no watchdogs any more."""
        self.is_over = False
        self.newest_promised = 0

    def saved(self, step: int, best: int | None) -> None:
        self.say(f"saved step {step}")
        if step not in self._damaged:  # before it was announced
            self._promised.add(step)
        self._best = best
        newest = sorted(self._promised)[-self._setup.config.checkpoint.keep :]
        self._promised = {*newest, *({best} & self._promised if best is not None else ())}
        self.newest_promised = step

    def damaged(self, step: int) -> None:
        self._promised.discard(step)
        self._damaged.add(step)

    def resumed(self, step: int) -> None:
        self.say(f"begins after step {step}")
        self._check_best(step)
        self._damaged.clear()
        self._has_left = False
        newest = max(self._promised, default=0)
        if step < newest:
            raise Violation(f"the checkpoint of step {newest} was promised, and {step} is resumed")
        self._promised = {old for old in self._promised if old <= step}
        self.newest_promised = step

    def _check_best(self, step: int) -> None:
        """A run goes on with a best checkpoint that is as good as the one that was announced.

        Survivors of its own step may not know of its save, and make it again.
        """
        there = (self._setup.run.checkpoints / checkpoint.BEST).resolve()
        found = checkpoint.step_of(there) if there.is_dir() else None
        best, self._best = self._best, found
        if best is None or best == step or best not in self._promised or self._damaged:
            return
        seed = self._setup.seed
        if found is None or top1_of(seed, found) < top1_of(seed, best):
            raise Violation(f"the best checkpoint of step {best} was promised, and best is {found}")

    def left(self, step: int, outcome: EndOutcome) -> None:
        """The ranks leave together after that step."""
        self._has_left = True
        if outcome != "failed" and step not in self._promised | self._damaged:
            raise Violation(f"the run has {outcome} after step {step}, which was not saved")

    def done(self) -> None:
        """After the run: what it has left."""
        self.is_over = True
        setup, directory = self._setup, self._setup.run.checkpoints
        if setup.target_steps in self._damaged:  # after the ranks had read it back
            return
        newest = checkpoint.newest_good(directory)
        if newest is None or checkpoint.step_of(newest) != setup.target_steps:
            raise Violation(f"the run is called complete, and its newest checkpoint is {newest}")
        state = checkpoint.load(newest)
        self._check_weights(state)
        every, last = setup.evaluate_every, setup.target_steps
        due = {*range(every, last, every), last}
        progress = Progress(**state["progress"])
        if len(progress.losses) != len(due):
            raise Violation(f"{len(progress.losses)} evaluations are noted of {len(due)} due ones")
        marked, top1 = progress.marked, max(top1_of(setup.seed, step) for step in due)
        if not self.may_lose_best and (marked is None or marked[1] < top1):
            raise Violation(f"the best evaluation has {top1:.2f}, and the checkpoint {marked}")
        if marked is not None:
            best = checkpoint.step_of(checkpoint.named(directory, "best"))
            if (best, top1_of(setup.seed, best)) != tuple(marked):
                raise Violation(f"the best checkpoint is that of {marked}, and best is {best}")
        num_kept = len(checkpoint.paths(directory))
        # A kill may have come before the last pruning, and a power cut have undone another one.
        if num_kept > setup.config.checkpoint.keep + 4:
            raise Violation(f"{num_kept} checkpoints are kept")

    def _check_weights(self, state: dict[str, Any]) -> None:
        if not self._setup.follows_samples:  # an update has checked the steps
            return
        seen, digest = due_samples(self._setup)
        found = state["model"]["seen"].numpy()
        if not np.array_equal(found, seen) or state["digest"] != digest:
            odd = np.flatnonzero(found != seen)
            raise Violation(f"samples {odd[:8]} were not seen as often as they are due")

    def word(self, attempt: Attempt, key: str, word: bytes) -> None:
        """What ends an attempt, as a rank has left it in the store: whom does it name?"""
        if key == "generation" and int(word) > 0:
            self._check_over(attempt, int(word) - 1)
        if not key.endswith("last word"):
            return
        failure = json.loads(word)
        self.say(f"first failure: {failure['rank']}: {failure['text']}")
        is_own = failure["rank"] is not None and failure["cause"] is None
        self._check_accused(attempt, failure["text"], [failure["rank"]] if is_own else [])

    def _check_over(self, attempt: Attempt, generation: int) -> None:
        """A generation that ends has lost a rank, or one of it has broken off."""
        circle = attempt.circle(generation)
        lost = any(one.is_dead for one in (*circle.processes.values(), *attempt.processes.values()))
        if not lost and not circle.left:
            raise Violation(f"generation {generation} is over, and nothing is wrong with it")
        self.say(f"generation {generation} is over")

    def spoken(self, attempt: Attempt, text: str) -> None:
        """What a watchdog writes to standard error: the store may not have it."""
        attempt.has_spoken = True
        self._check_accused(attempt, text, [])

    def _check_accused(self, attempt: Attempt, text: str, ranks: list[int]) -> None:
        accused = [*ranks, *(int(number) for number in _ACCUSED.findall(text))]
        for rank in accused:
            process = attempt.process_of(rank)
            processes = process, *attempt.former.get(rank, ())
            is_faulty = any(one.is_faulty for one in processes)
            is_faulty |= process.host.is_down or process.host.is_cut_off
            is_faulty |= rank == 0 and self._kernel.disk.is_bad  # it alone writes
            is_faulty |= process.is_dead and attempt.healed_at > 0  # it gave up while cut off
            if not is_faulty and not any(
                other.host.is_cut_off for other in attempt.processes.values()
            ):
                raise Violation(f"rank {rank} is named, and is not faulty: {text}")

    def must_end(self, attempt: Attempt, since: str, seconds: float) -> None:
        """All ranks of the attempt that can run at all must be gone by then, or do steps again."""
        begin = self._kernel.tasks.now

        def look() -> None:
            if self.is_over or (attempt.is_warm and attempt.last_step > begin):
                return
            if begin < attempt.healed_at < attempt.last_step:  # before a deadline had passed
                return
            for process in attempt.processes.values():
                if not process.is_dead and not process.is_frozen and not process.host.is_cut_off:
                    raise Violation(f"{process.name} waits for ever: {seconds:.0f} s after {since}")

        self._kernel.tasks.after(seconds, look)

    def must_stop(self, attempt: Attempt, since: str, seconds: float) -> None:
        """Ranks that were asked to leave have left by then, unless something breaks meanwhile.

        It counts from their first step: before it they may wait for an earlier start of the job.
        """
        tasks = self._kernel.tasks
        asked_at = tasks.now

        def look() -> None:
            former = itertools.chain.from_iterable(attempt.former.values())
            ranks = [*attempt.processes.values(), *former]  # some may have come after the request
            if self._kernel.disk.is_bad or any(
                one.is_faulty or one.host.is_down or one.host.is_cut_off for one in ranks
            ):
                return
            due = max(asked_at, min(attempt.begun_at, tasks.now)) + seconds
            if tasks.now < due:
                tasks.at(due, look)
            elif not any(one.is_dead for one in ranks):
                raise Violation(f"nobody has left {seconds:.0f} s after {since}")

        tasks.after(seconds, look)

    def must_be_named(self, attempt: Attempt, rank: int, since: str, seconds: float) -> None:
        """A rank that hangs, and whose watchdog does not, is named by then."""

        process = attempt.processes[rank]

        def look() -> None:
            words = [json.loads(word) for key, word in attempt.words.items() if "last word" in key]
            if process.is_dead and not words:
                return  # something else has ended it
            if self._has_left or attempt.num_faults > 1:  # then who is named may be another one
                return
            if not attempt.has_spoken and all(word["rank"] is not None for word in words):
                raise Violation(f"{since}, and nobody says so after {seconds:.0f} s")

        self._kernel.tasks.after(seconds, look)


def hang_seconds(setup: RunSetup, phase: Phase) -> float:
    """When a rank whose main thread hangs in this phase must have been named."""
    known = waits(setup.config)
    limit = known["save_stall" if phase is Phase.SAVING else "stall"]
    return limit + known["judging"] + 5 * known["heartbeat"] + 10


def end_seconds(setup: RunSetup, shutdown_seconds: float) -> float:
    """When an attempt that cannot go on must be over, in the worst case.

    The deadline of the control group is the last to come; then a save in flight ends, stacks are
    written, torchrun is patient, and SLURM kills.
    """
    known = waits(setup.config)
    deadline = known["save_collective"] + known["rendezvous"]
    last = known["save_stall"] + known["last_words"] + known["exit_barrier"]
    return deadline + last + shutdown_seconds + 2 * KILL_WAIT_SECONDS
