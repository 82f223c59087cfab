"""Proves from the events of all attempts alone what is behind a run's final weights.

A `train` row says that a step was done, on top of the one before; a `run` row, which step the
weights went back to. Followed from the first row to the last, they say which steps the final
weights are made of. Which samples a step has follows from the sizes in the `run` rows and the seed.

A rank may be lost when all have done a step and still add up its log. The others keep their weights
with that step, and only the `run` row of the next attempt tells of it: it begins after the step.
None is two steps ahead, as the next step needs all ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.data.order.partition import BatchPlan, epoch_order
from pipeline.run.events import Event, RunEvent, TrainEvent


class HistoryError(Exception):
    """The events do not prove that every step and sample was there exactly once."""


@dataclass(frozen=True, slots=True)
class Step:
    """One that was done."""

    number: int
    """From 1."""
    attempt: int
    """Of the process groups, from 0."""
    time: float
    """When its row was written, Unix seconds."""
    lost_by: int | None = None
    """The attempt that began before it: it was done again. None: it is behind the weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    done: Sequence[Step]
    """In the order in which they were done."""
    begins: Sequence[float]
    """Of the attempts, Unix seconds."""
    num_told_late: int
    """Steps that only the next attempt's `run` row tells of."""
    num_epochs: int
    """Whole epochs, in which every sample was there once."""

    @property
    def kept(self) -> list[Step]:
        """Those that the final weights are made of."""
        return [step for step in self.done if step.lost_by is None]


def prove(rows: Iterable[Event], last_step: int, seed: int) -> History:
    """The history behind the weights after `last_step`, of a run that logs every step.

    `rows` are all of the run's, those too that later attempts have made void. Raises
    `HistoryError` if a step is missing or there twice, or a sample in an epoch.
    """
    done: list[Step] = []
    kept: list[int] = []
    """Places in `done`: those of steps 1, 2, 3 …"""
    begins: list[float] = []
    plan: BatchPlan | None = None
    num_told_late = 0
    for row in rows:
        if isinstance(row, RunEvent):
            resumed, attempt = row.resumed_from or 0, len(begins)
            if begins and resumed == len(kept) + 1:
                num_told_late += 1
                told = done[-1].time if done else row.time
                kept.append(len(done))
                done.append(Step(resumed, attempt - 1, told))
            if resumed > len(kept):
                raise HistoryError(
                    f"attempt {attempt} begins after step {resumed}, and the events before it "
                    f"have {len(kept)} steps"
                )
            plan = _same_plan(plan, row)
            for place in kept[resumed:]:
                done[place] = replace(done[place], lost_by=attempt)
            del kept[resumed:]
            begins.append(row.time)
        elif isinstance(row, TrainEvent):
            if plan is None:
                raise HistoryError(f"step {row.step} comes before any 'run' row")
            if row.step != len(kept) + 1:
                raise HistoryError(
                    f"step {row.step} of attempt {len(begins) - 1} comes on top of step {len(kept)}"
                )
            kept.append(len(done))
            done.append(Step(row.step, len(begins) - 1, row.time))
    if plan is None or len(kept) != last_step:
        raise HistoryError(
            f"the events have {len(kept)} steps, and the weights are those after {last_step}"
        )
    updates = [done[place].number - 1 for place in kept]
    num_epochs = count_epochs(plan, updates, seed)
    return History(done=done, begins=begins, num_told_late=num_told_late, num_epochs=num_epochs)


def _same_plan(plan: BatchPlan | None, row: RunEvent) -> BatchPlan:
    """What the run goes by; the number of replicas may change, what they share may not."""
    whole = row.num_train_samples // row.global_batch_size
    own = BatchPlan(
        num_samples=row.num_train_samples,
        global_batch_size=row.global_batch_size,
        num_replicas=row.global_batch_size // (row.local_batch_size * row.accumulation_steps),
        accumulation_steps=row.accumulation_steps,
        drop_last=row.steps_per_epoch == whole,
    )
    for other in (own,) if plan is None else (own, plan):
        sizes = other.num_samples, other.global_batch_size, other.steps_per_epoch
        expected = row.num_train_samples, row.global_batch_size, row.steps_per_epoch
        if sizes != expected:
            raise HistoryError(
                f"samples, batch and steps of an epoch are {expected} in a 'run' "
                f"row, expected {sizes}"
            )
    return own


def count_epochs(plan: BatchPlan, updates: Sequence[int], seed: int) -> int:
    """The epochs that these updates (numbered from 0) make whole.

    Raises `HistoryError` unless every sample is in each of them exactly once, but for those that
    the plan leaves out, and in the rest at most once.
    """
    by_epoch: dict[int, list[int]] = {}
    for update in updates:
        by_epoch.setdefault(plan.epoch_of(update), []).append(update)
    num_whole = 0
    for epoch, own in by_epoch.items():
        order = epoch_order(plan.num_samples, seed, epoch, plan.shuffle)
        positions = [
            place
            for update in own
            for micro_batch in range(plan.accumulation_steps)
            for replica in range(plan.num_replicas)
            for place in plan.positions(update, micro_batch, replica)
        ]
        counts = np.bincount(order[positions], minlength=plan.num_samples)
        if counts.max() > 1:
            raise HistoryError(
                f"sample {counts.argmax()} was there {counts.max()} times in epoch {epoch}"
            )
        is_whole = len(own) == plan.steps_per_epoch
        num_missing = int((counts == 0).sum())
        if is_whole and num_missing != plan.dropped_samples:
            raise HistoryError(f"{num_missing} samples are missing in epoch {epoch}")
        num_whole += is_whole
    return num_whole
