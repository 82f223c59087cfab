"""Saves a run while its steps go on.

    between two steps    replicas compared ─▶ state gathered ─▶ copied on rank 0
    in the background    written, read back, renamed ─▶ best marked ─▶ old ones deleted
    between two steps    rank 0 reports it
    before what follows  all ranks learn what became of it

At most one save is in flight, and none is left out: the next one waits for its end, as do the end
of an evaluation, which may have to mark another best one, and the end of the command. The last
save of a command is no copy, but written while the ranks wait: it counts only once it is there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from pipeline.ranks.failure import sentence_of
from pipeline.run import checkpoint
from pipeline.run.events import CheckpointEvent, CheckpointReason
from pipeline.run.phase import Phase
from pipeline.train.components import Components
from pipeline.train.replicas import ReplicaCheck
from pipeline.train.snapshot import Snapshots

_NICENESS = 5
"""Of the thread that writes: for Linux each has its own.

The steps then have three quarters of a core that both want.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Save:
    """A save that has begun."""

    step: int
    epoch: float
    reason: CheckpointReason
    marked: tuple[int, float] | None
    """The best one of its state."""
    marked_before: tuple[int, float] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Written:
    """What became of a save on the disk."""

    path: str = ""
    num_bytes: int = 0
    seconds: float
    error: str | None = None
    """Why there is no checkpoint."""
    warning: str | None = None
    """What was not done after it; the next save makes up for that."""


class Saves:
    """Of one command; all ranks call `save` and `settle` together."""

    def __init__(self, components: Components, replicas: ReplicaCheck) -> None:
        self._components = components
        self._replicas = replicas
        self._snapshots = Snapshots(components.world.device)
        self._copies = components.config.checkpoint.background
        self._thread = components.world.threads.one_more("saving", lambda: os.nice(_NICENESS))
        self._in_flight: _Save | None = None
        self._future: Future[_Written] | None = None
        """On rank 0, until the save in flight is reported."""
        self._error: str | None = None
        """Of the save that was reported last."""
        self._waited = 0.0
        """How long the steps have waited for the save in flight."""
        self._failed: _Save | None = None
        """The last one, if the disk has not taken it."""
        is_saved = components.start.survivors is None
        self.saved_step = components.progress.step if is_saved else None
        """Of the newest checkpoint, if it is known."""

    def save(
        self, reason: CheckpointReason, best_top1: float | None = None, *, in_background: bool
    ) -> str | None:
        """Save the run as it is, as the best checkpoint if `best_top1` is given.

        Returns what was wrong with the disk, on all ranks; None: it is saved, or is being written
        in the background. Raises `ValueError` if a weight is not a number or the replicas differ.
        """
        components, progress = self._components, self._components.progress
        self.settle()
        components.enter(Phase.AGREEING)
        self._check()
        marked = progress.marked
        if best_top1 is not None:
            progress.marked = progress.step, best_top1
        elif self._failed is not None and self._failed.step == progress.step:
            progress.marked = self._failed.marked
        save = _Save(
            step=progress.step,
            epoch=components.epoch,
            reason=reason,
            marked=progress.marked,
            marked_before=marked,
        )
        state = components.replica.state_dict() if components.mesh.replica == 0 else {}
        components.enter(Phase.SAVING)
        is_in_flight = False
        if components.world.is_main:
            is_in_flight = self._begin(save, state, in_background=in_background)
            components.enter(Phase.AGREEING)  # only the others may wait as long as saving takes
        is_in_flight, error = components.world.broadcast_object((is_in_flight, self._error))
        if is_in_flight:
            self._in_flight = save
            return None
        self._conclude(save, error)
        return error

    def settle(self) -> None:
        """Wait for the save in flight, if there is one: then all ranks know what became of it."""
        if self._in_flight is None:
            return
        components, save = self._components, self._in_flight
        components.enter(Phase.SAVING)
        if components.world.is_main:
            self._wait(save)
            components.enter(Phase.AGREEING)
        self._in_flight = None
        self._conclude(save, components.world.broadcast_object(self._error))

    def report(self) -> None:
        """On rank 0, after each step: report the save in flight if it has ended by now."""
        if self._in_flight is not None and self._future is not None and self._future.done():
            self._report(self._in_flight, self._future.result(), has_ended_aside=True)

    def finish(self) -> None:
        """When training has failed: let rank 0 end the save in flight, and report it."""
        limit = self._components.config.distributed.save_timeout_seconds
        if self._in_flight is not None and self._future is not None:
            with contextlib.suppress(Exception):  # the run has failed for another reason
                written = self._future.result(limit)
                self._report(self._in_flight, written, has_ended_aside=True)

    def close(self) -> None:
        self._thread.shutdown(wait=False)

    def _check(self) -> None:
        components = self._components
        mine = int(self._replicas.fingerprint()), components.replica.is_finite()
        fingerprints, are_finite = zip(*components.world.all_gather_object(mine), strict=True)
        self._replicas.check(fingerprints)
        if not all(are_finite):
            raise ValueError(
                f"a weight is not a number at step {components.progress.step}: training has "
                "diverged, nothing is saved; lower optim.learning_rate"
            )

    def _begin(self, save: _Save, state: dict[str, Any], *, in_background: bool) -> bool:
        """Copy the state and let it be written, or write it; returns whether it is in flight."""
        components, begin = self._components, time.perf_counter()
        state["progress"] = dataclasses.asdict(components.progress)
        state["settings"] = json.dumps(components.settings.to_json())
        copied = self._copy(state) if in_background else None
        if copied is not None:
            self._in_flight = save  # also for `finish`, should another rank fail by now
            self._future = self._thread.submit(self._write, save, copied)
            self._waited = time.perf_counter() - begin
            components.journal.copied_state(self._waited)
            return True
        written = self._write(save, lambda: state)
        self._waited = time.perf_counter() - begin
        self._report(save, written)
        return False

    def _copy(self, state: dict[str, Any]) -> Callable[[], dict[str, Any]] | None:
        """None if saves are not made in the background, or no more."""
        if not self._copies:
            return None
        try:
            return self._snapshots.take(state)
        except MemoryError as error:
            self._copies = False
            self._components.journal.console.line(
                f"warning: the steps wait while checkpoints are written: {error}"
            )
            return None

    def _write(self, save: _Save, copied: Callable[[], dict[str, Any]]) -> _Written:
        """Write the checkpoint, and do what follows from it; in any thread of rank 0."""
        directory, begin = self._components.run.checkpoints, time.perf_counter()
        try:
            path, num_bytes = checkpoint.save(directory, save.step, copied())
        except OSError as error:
            return _Written(error=sentence_of(error), seconds=time.perf_counter() - begin)
        seconds, warning = time.perf_counter() - begin, None
        try:
            if save.marked is not None:
                checkpoint.mark_best(directory, save.marked[0])
            checkpoint.prune(directory, self._components.config.checkpoint.keep)
        except OSError as error:
            warning = sentence_of(error)
        return _Written(path=str(path), num_bytes=num_bytes, seconds=seconds, warning=warning)

    def _wait(self, save: _Save) -> None:
        """On rank 0: wait for the save in flight, unless it is reported already."""
        if self._future is None:
            return
        begin = time.perf_counter()
        written = self._future.result()
        self._waited += time.perf_counter() - begin
        self._report(save, written)

    def _report(self, save: _Save, written: _Written, *, has_ended_aside: bool = False) -> None:
        self._future, self._error = None, written.error
        journal = self._components.journal
        if written.error is not None:
            journal.checkpoint_failed(save.reason, self._waited)
            if self._in_flight is save:
                journal.no_checkpoint(written.error)
            return
        event = CheckpointEvent(
            step=save.step,
            epoch=save.epoch,
            path=written.path,
            num_bytes=written.num_bytes,
            seconds=written.seconds,
            reason=save.reason,
            waited_seconds=self._waited if has_ended_aside else None,
        )
        journal.checkpointed(event, self._waited)
        if written.warning is not None:
            journal.console.line(
                "warning: the best checkpoint is not marked, or old ones are not deleted: "
                f"{written.warning}"
            )

    def _conclude(self, save: _Save, error: str | None) -> None:
        self._failed = None if error is None else save
        if error is None:
            self.saved_step = save.step
        else:
            self._components.progress.marked = save.marked_before
