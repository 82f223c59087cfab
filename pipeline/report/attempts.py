"""What the process groups of a run did, each from its start to its end: pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.run.ending import EndOutcome
from pipeline.run.event_log import of_training
from pipeline.run.events import EndEvent, Event, RunEvent

AttemptOutcome = Literal[EndOutcome, "killed", "unfinished"]
"""How it left; killed: another one began, and it had left no last word."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One process group; what it did may be void, because the next one went on from before."""

    first_time: float
    last_time: float
    """Of its last row, Unix seconds."""
    first_step: int
    last_step: int
    ranks: str
    """See `describe_ranks`; empty for one that failed before it began."""
    outcome: AttemptOutcome = "unfinished"
    error: str | None = None
    """Why it failed."""

    @property
    def seconds(self) -> float:
        return self.last_time - self.first_time


def find_attempts(rows: Sequence[Event]) -> tuple[Attempt, ...]:
    """The attempts of a run in their order; `rows` are all of it."""
    attempts: list[Attempt] = []
    is_open = False
    for row in of_training(rows):
        if isinstance(row, RunEvent):
            if is_open:
                attempts[-1] = replace(attempts[-1], outcome="killed")
            attempts.append(_begun(row, describe_ranks(row)))
            is_open = True
        elif not is_open:  # it failed before it began
            attempts.append(_ended(_begun(row, ""), row))
        else:
            attempts[-1] = replace(attempts[-1], last_time=row.time, last_step=row.step)
            if isinstance(row, EndEvent):
                attempts[-1] = _ended(attempts[-1], row)
                is_open = False
    return tuple(attempts)


def _begun(row: Event, ranks: str) -> Attempt:
    time, step = row.time, row.step
    return Attempt(first_time=time, last_time=time, first_step=step, last_step=step, ranks=ranks)


def _ended(attempt: Attempt, row: Event) -> Attempt:
    if not isinstance(row, EndEvent):
        return attempt
    return replace(attempt, outcome=row.outcome, error=row.error)


def describe_ranks(start: RunEvent) -> str:
    """The ranks of a process group and what they add up to, such as '2 × 64 images'."""
    ranks, local, rounds = start.world_size, start.local_batch_size, start.accumulation_steps
    replicas = start.global_batch_size // (local * rounds)
    accumulated = f" × {rounds} accumulated" if rounds > 1 else ""
    if replicas == ranks:
        return f"{ranks} × {local:,} images{accumulated}"
    pairs = "1 replica" if replicas == 1 else f"{replicas} replicas"
    return f"{ranks}, a column each: {pairs} × {local:,} images{accumulated}"
