"""All waits of a job, and which has to end before which.

`waits` is the one function that knows them all; `ORDER` says what must fit into what, and why;
`check_waits` compares. A test compares the tables of `docs/timeouts.md` with both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pipeline.config import timeouts
from pipeline.config.schema import Config

_NUM_CLASSES = 1000
_SLOW_DISK_BYTES_PER_SECOND = 50e6
"""What a save is assumed to reach that nobody has measured: a busy file system over a network."""

WaitName = Literal[
    "step", "evaluation", "save", "in_flight", "start",
    "heartbeat", "judging", "last_words", "stall", "save_stall", "collective", "save_collective",
    "rendezvous", "late", "lock", "fetch_attempt", "fetch", "stop", "shutdown", "exit_barrier",
    "outcome", "requeue", "grace", "kill_wait", "time_limit", "silence", "kept", "alert",
    "stall_alert", "save_alert", "answers", "meeting", "meetings", "doctor_collective", "doctor",
]  # fmt: skip

NAMES: Mapping[WaitName, str] = {
    "step": "a step, measured",
    "evaluation": "an evaluation, measured",
    "save": "a save, measured, or else its bytes at 50 MB/s",
    "in_flight": "a save in the background, which has to end first",
    "start": "a start up to the first step, measured",
    "heartbeat": "between two heartbeats of a rank's watchdog",
    "judging": "in which a watchdog compares heartbeats",
    "last_words": "in which a watchdog writes stacks and lets others read its verdict",
    "stall": "distributed.timeout_seconds: a rank stands still",
    "save_stall": "distributed.save_timeout_seconds: rank 0 is saving",
    "collective": "a collective of training",
    "save_collective": "a collective in which others wait for rank 0",
    "rendezvous": "in which all ranks must have started",
    "late": "a warm restart waits for a rank that lives, before its supervisor kills it",
    "lock": "in which a former job leaves the run directory",
    "fetch_attempt": "data.fetch_timeout_seconds: an attempt to fetch a shard brings no byte",
    "fetch": "all data.fetch_attempts, with their pauses",
    "stop": "from a signal to the boundary of a step",
    "shutdown": "TORCH_ELASTIC_SHUTDOWN_TIMEOUT: ranks leave before torchrun kills them",
    "exit_barrier": "a node whose ranks are done waits for the others",
    "outcome": "reading from the run how the ranks ended",
    "requeue": "the pauses in which the job asks to be queued again",
    "grace": "--signal-lead: SLURM's warning before its limit, Kubernetes' grace period",
    "kill_wait": "KillWait of SLURM: from SIGTERM to SIGKILL",
    "time_limit": "--time: SLURM's limit of the job",
    "silence": "a rank publishes nothing before it counts as silent",
    "kept": "an exporter serves a run that has ended",
    "alert": "an alert's condition holds before it rings",
    "stall_alert": "since the last step, before RunStalled may ring",
    "save_alert": "the same while a run saves or evaluates",
    "answers": "all questions that the doctor asks a host",
    "meeting": "what the doctor's ranks do together, once",
    "meetings": "all of that, and the doctor's rendezvous",
    "doctor_collective": "a collective of the doctor",
    "doctor": "`launch doctor` waits for its ranks",
}
"""What each wait is."""

Strictness = Literal["refused", "warned of", "tested"]


class Rule(NamedTuple):
    """What must fit into a wait. `tested` rules are of the project's own numbers."""

    parts: tuple[WaitName, ...]
    whole: WaitName
    reason: str
    remedy: str = ""
    strictness: Strictness = "tested"


_RAISE = "raise --distributed.timeout_seconds"
_SAVE = "raise --distributed.save_timeout_seconds"
_LEAD = "raise --signal-lead, or TORCH_ELASTIC_SHUTDOWN_TIMEOUT where torchrun is started by hand"

ORDER = (
    Rule(("step",), "stall",
         "a watchdog would take a step for a hang", _RAISE, "warned of"),
    Rule(("save",), "save_stall",
         "the watchdog would end the job in each save", _SAVE, "refused"),
    Rule(("stall", "heartbeat", "judging", "heartbeat"), "collective",
         "the watchdog names the rank that hangs, and a collective that gives up first cannot"),
    Rule(("save_stall", "heartbeat", "judging", "heartbeat"), "save_collective",
         "the same while rank 0 saves"),
    Rule(("lock",), "save_collective",
         "the others wait there while rank 0 waits for a former job"),
    Rule(("save",), "late",
         "where another rank is lost in a save, rank 0 may be killed in it; if the steps wait for "
         "it, all may be, and what they have in memory is lost",
         "use a faster disk, and --checkpoint.background true", "warned of"),
    Rule(("evaluation",), "late",
         "where another rank is lost in an evaluation, all may be killed in it, and what they have "
         "in memory is lost", "lower --checkpoint.every_epochs", "warned of"),
    Rule(("late",), "rendezvous",
         "a rank that is late is replaced while the others still wait to meet it"),
    Rule(("fetch_attempt",), "stall",
         "the watchdog would end the job, and name a rank instead of the server, before a second "
         "attempt", f"lower --data.fetch_timeout_seconds, or {_RAISE}", "refused"),
    Rule(("fetch",), "stall",
         "the watchdog may end the job before the last attempt",
         f"lower --data.fetch_attempts or --data.fetch_timeout_seconds, or {_RAISE}", "warned of"),
    Rule(("stop", "save"), "shutdown",
         "torchrun would kill ranks that save, and the work since the last checkpoint would be "
         "lost", _LEAD, "refused"),
    Rule(("stop", "in_flight", "save"), "shutdown",
         "the same if a signal comes as a save in the background begins", _LEAD, "warned of"),
    Rule(("evaluation", "stop", "save"), "shutdown",
         "a signal that comes as an evaluation begins may end in a kill, and the work since the "
         "last checkpoint would be lost", _LEAD, "warned of"),
    Rule(("shutdown", "exit_barrier", "outcome", "requeue"), "grace",
         "if ranks save to the last second, the job may be killed before it is queued again",
         "raise --signal-lead", "warned of"),
    Rule(("stop", "save"), "kill_wait",
         "after scancel or a preemption SLURM may kill ranks that save, and the work since the "
         "last checkpoint would be lost",
         "ask the administrators for a longer KillWait, or save more often", "warned of"),
    Rule(("start", "stop", "grace"), "time_limit",
         "the job would be asked to leave before its first step", "raise --time", "refused"),
    Rule(("last_words",), "shutdown",
         "torchrun would kill the rank that says why the job ends"),
    Rule(("silence", "alert"), "stall",
         "HangSuspected has to ring while the rank hangs"),
    Rule(("stall_alert", "alert"), "stall",
         "RunStalled has to ring before the watchdog ends the job"),
    Rule(("save_alert", "alert"), "save_stall",
         "the same while a run saves"),
    Rule(("alert",), "kept",
         "an alert of how a run has ended has to ring while somebody says so"),
    Rule(("answers",), "meeting",
         "a rank may wait for every answer before it meets the others"),
    Rule(("meeting",), "doctor_collective",
         "the doctor says which check is stuck, and a collective cannot"),
    Rule(("meetings",), "doctor",
         "the doctor's ranks say what is stuck, and their launcher cannot"),
)  # fmt: skip


class Measured(NamedTuple):
    """Seconds of a run's own events; None: not measured."""

    step: float | None = None
    evaluation: float | None = None
    save: float | None = None
    start: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What ends a job from outside, in seconds; None: nothing does, or nobody knows."""

    shutdown: float | None = None
    grace: float | None = None
    kill_wait: float | None = None
    time_limit: float | None = None
    is_requeued: bool = False


ALONE, UNMEASURED = Surroundings(), Measured()


def waits(
    config: Config, around: Surroundings = ALONE, measured: Measured = UNMEASURED
) -> dict[WaitName, float]:
    """Every wait of a job that is known, in seconds."""
    limits, data = config.distributed, config.data
    heartbeat = timeouts.heartbeat_seconds(min(limits.timeout_seconds, limits.save_timeout_seconds))
    save = measured.save
    if save is None:
        save = config.checkpoint_bytes(_NUM_CLASSES) / _SLOW_DISK_BYTES_PER_SECOND
    found: dict[WaitName, float | None] = {
        **{"step": measured.step, "evaluation": measured.evaluation, "save": save},
        "in_flight": save if config.checkpoint.background else None,
        "start": measured.start,
        "heartbeat": heartbeat,
        "judging": timeouts.num_judged(heartbeat) * heartbeat,
        "last_words": timeouts.DUMP_SECONDS + 2 * heartbeat + timeouts.FAREWELL_SECONDS,
        "stall": limits.timeout_seconds,
        "save_stall": limits.save_timeout_seconds,
        "collective": timeouts.collective_seconds(limits.timeout_seconds),
        "save_collective": timeouts.collective_seconds(limits.save_timeout_seconds),
        "rendezvous": timeouts.rendezvous_seconds(limits.timeout_seconds),
        "late": timeouts.LATE_SECONDS if limits.warm_restarts else None,
        "lock": limits.save_timeout_seconds,
        "stop": (measured.step or 0.0) + timeouts.POLL_SECONDS,
        "shutdown": around.shutdown,
        "exit_barrier": timeouts.EXIT_BARRIER_SECONDS,
        "outcome": timeouts.OUTCOME_SECONDS,
        "requeue": sum(timeouts.REQUEUE_PAUSES) * around.is_requeued,
        **{"grace": around.grace, "kill_wait": around.kill_wait, "time_limit": around.time_limit},
        "silence": timeouts.MISSED_PUBLICATIONS * config.metrics.publish_seconds,
        "kept": timeouts.KEPT_SECONDS,
        "alert": 60 * timeouts.ALERT_HOLD_MINUTES,
        "stall_alert": 60 * timeouts.ALERT_STALL_MINUTES,
        "save_alert": 60 * timeouts.ALERT_SAVE_MINUTES,
        "answers": timeouts.NUM_QUESTIONS * timeouts.ANSWER_SECONDS,
        "meeting": timeouts.MEETING_SECONDS,
        "meetings": timeouts.LEAST_RENDEZVOUS_SECONDS
        + timeouts.NUM_MEETINGS * timeouts.MEETING_SECONDS,
        "doctor_collective": timeouts.collective_seconds(timeouts.DOCTOR_LIMIT_SECONDS),
        "doctor": timeouts.DOCTOR_SECONDS,
    }
    if data.is_remote:
        pauses = sum(map(timeouts.longest_pause, range(1, min(data.fetch_attempts, 10_000))))
        found["fetch_attempt"] = data.fetch_timeout_seconds
        found["fetch"] = data.fetch_attempts * data.fetch_timeout_seconds + pauses
    return {name: float(value) for name, value in found.items() if value is not None}


def check_waits(
    config: Config, around: Surroundings = ALONE, measured: Measured = UNMEASURED
) -> list[str]:
    """What may go wrong as waits contradict each other, with the arithmetic.

    Raises `ValueError` for what surely goes wrong; what only an assumed save breaks may.
    """
    known, warnings = waits(config, around, measured), []
    for rule in ORDER:
        if rule.strictness == "tested" or not {*rule.parts, rule.whole} <= known.keys():
            continue
        total = sum(known[name] for name in rule.parts)
        if total <= known[rule.whole]:
            continue
        terms = " + ".join(f"{known[name]:.4g} s ({NAMES[name]})" for name in rule.parts)
        terms += f" = {total:.4g} s" if len(rule.parts) > 1 else ""
        sentence = (
            f"{terms} do not fit into {known[rule.whole]:.4g} s ({NAMES[rule.whole]}): "
            f"{rule.reason}; {rule.remedy}"
        )
        if rule.strictness == "refused" and ("save" not in rule.parts or measured.save is not None):
            raise ValueError(sentence)
        warnings.append(sentence)
    return warnings
