"""How long a job waits for what, in seconds: declared once. `pipeline.config.order` compares them.

Nothing is imported here: `pipeline.start_ranks` is to start at once.
"""

from __future__ import annotations

import math

_HEARTBEATS_PER_LIMIT = 10
_LONGEST_HEARTBEAT_SECONDS = 10.0
_JUDGING_SECONDS = 2.0
"""On a busy host a thread may not run for a second: that is no silence yet."""
DUMP_SECONDS = 20.0
FAREWELL_SECONDS = 5.0
LEAST_RENDEZVOUS_SECONDS = 120.0
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
ANSWER_SECONDS = 30.0
NUM_QUESTIONS = 5
MEETING_SECONDS = NUM_QUESTIONS * ANSWER_SECONDS + 20.0
NUM_MEETINGS = 3
DOCTOR_LIMIT_SECONDS = 120.0  # a first import of torch over a network takes some hosts a minute
DOCTOR_SECONDS = LEAST_RENDEZVOUS_SECONDS + NUM_MEETINGS * MEETING_SECONDS + 60.0
SHUTDOWN_VARIABLE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
TORCHRUN_SHUTDOWN_SECONDS = 30
"""torchrun's own, where the variable is not set."""
LEAD_SECONDS = 300
EXIT_BARRIER_SECONDS = 20
OUTCOME_SECONDS = 10
REQUEUE_PAUSES = (5, 10, 20)
"""Between the attempts to queue a job again: SLURM's controller may be starting anew."""
POLL_SECONDS = 0.5
WATCH_SECONDS = 0.25
"""Between two looks of a supervisor at what the ranks say of its own."""
MEETING_POLL_SECONDS = 0.02
LATE_SECONDS = 60.0
"""How long a generation waits for a rank that lives, before its supervisor kills it."""
ANSWER_OF_STORE_SECONDS = 10.0
"""A supervisor waits so long for the store."""
HURRIED_SECONDS = 10.0
"""A rank waits so long for others to come, in a job that is asked to stop."""
KEPT_SECONDS = 180.0
MISSED_PUBLICATIONS = 10
ALERT_HOLD_MINUTES = 1
ALERT_STALL_MINUTES = 3
ALERT_SAVE_MINUTES = 25


def margin_seconds(*, is_requeued: bool) -> int:
    """What must be left of the grace once torchrun's shutdown is over."""
    return EXIT_BARRIER_SECONDS + OUTCOME_SECONDS + (sum(REQUEUE_PAUSES) if is_requeued else 0)


def shutdown_seconds(grace: int, *, is_requeued: bool) -> int:
    """What torchrun gives its ranks to leave: of a short grace at least half."""
    return grace - min(margin_seconds(is_requeued=is_requeued), grace // 2)


SHUTDOWN_SECONDS = shutdown_seconds(LEAD_SECONDS, is_requeued=False)
"""The same where nothing ends the job from outside."""


def heartbeat_seconds(shortest_limit: float) -> float:
    """Between two heartbeats of a rank that may stand still for so long."""
    return min(shortest_limit / _HEARTBEATS_PER_LIMIT, _LONGEST_HEARTBEAT_SECONDS)


def num_judged(heartbeat: float) -> int:
    """Heartbeats between the two looks of a watchdog at those of all ranks."""
    return max(3, math.ceil(_JUDGING_SECONDS / heartbeat))


def collective_seconds(limit_seconds: float) -> float:
    """The deadline of collectives in which a rank may wait `limit_seconds`.

    It is later, so that the watchdog ends a hang first: it can name the rank.
    """
    return 1.5 * limit_seconds + 5


def rendezvous_seconds(limit_seconds: float) -> float:
    """A busy host takes long to import torch."""
    return max(limit_seconds, LEAST_RENDEZVOUS_SECONDS)


def longest_pause(attempt: int, first: float = FIRST_PAUSE_SECONDS) -> float:
    """Before the attempt to fetch that follows this one, counted from 1."""
    return min(LONGEST_PAUSE_SECONDS, first * 2.0 ** min(attempt - 1, 32))
