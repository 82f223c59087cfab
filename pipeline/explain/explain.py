"""From a run directory to its explanation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import assert_never

from data_prep.shard_set.files import as_command
from pipeline.explain.causes import cause_of, first_cause
from pipeline.explain.evidence import Evidence
from pipeline.explain.explanation import ADVICE, Cause, Explanation, State
from pipeline.explain.stops import never_began, why_stopped
from pipeline.explain.troubles import damages, not_learning, troubles
from pipeline.metrics.outcomes import state_of
from pipeline.run.console import counted, duration
from pipeline.run.directory import RunDirectory
from pipeline.run.event_log import of_type, read_rows, waiting_job
from pipeline.run.events import Event, RunEvent, SubmitEvent
from pipeline.run.ledger import Ledger, ledger_of


def explain(
    run: RunDirectory,
    now: float | None = None,
    *,
    events: Sequence[Event] | None = None,
    asks: bool = True,
) -> Explanation:
    """What happened to the run, as seen from this host at `now` (Unix seconds).

    `events` are all rows of its `events.jsonl`, if they have been read. Without `asks` it looks at
    files alone: neither SLURM nor the kernel nor exporters are asked. Raises `OSError` if files
    cannot be read, `ValueError` if events are of a newer version.
    """
    faults: list[str] = []
    now = time.time() if now is None else now
    if events is None:
        events = list(read_rows(run.events, faults))
    return explained(Evidence.read(run, events, now, asks=asks), faults)


def explained(seen: Evidence, faults: Sequence[str] = ()) -> Explanation:
    """What the evidence says; `faults` are sentences about rows that cannot be read."""
    state, since = _state(seen)
    ledger = ledger_until(seen, state)
    found = _causes(seen, state, ledger)
    cause = found[0] if found else None
    num_steps, seconds = seen.lost if state in ("failed", "was killed") else (0, 0.0)
    return Explanation(
        state=state,
        since=since,
        cause=cause,
        lost_steps=num_steps,
        lost_seconds=seconds,
        next=_next(seen, state, cause, seen.step - num_steps),
        details=_details(seen, ledger, found[1:]) | ({"faults": faults[0]} if faults else {}),
        now=seen.now,
    )


def _state(seen: Evidence) -> tuple[State, float | None]:
    """How it stands, and since when; of one that was killed, when it was last heard of."""
    status, job = seen.status, seen.job
    if job is not None:
        is_after = status.outcome != "running" or seen.heard < (job.submitted or 0.0)
        if job.state == "PENDING" and is_after:  # SLURM knows of a lost node before others can
            return "queued", job.submitted
        if job.state in ("CONFIGURING", "RUNNING") and seen.heard < (job.started or 0.0):
            return "starting", job.started
    waiting = waiting_job(seen.events) if job is None and status.outcome != "running" else None
    if waiting is not None:
        return "queued", waiting.time
    starts = of_type(seen.rows, RunEvent)
    state = state_of(status, starts)
    match state:
        case "has not started":
            submitted = max((row.time for row in of_type(seen.events, SubmitEvent)), default=None)
            return ("failed" if seen.reported else state), submitted
        case "starting":
            return state, max((file.writer.since for file in seen.ranks), default=None)
        case "training":
            return state, starts[-1].time
        case "was killed":
            return state, seen.heard or status.ended
        case "completed" | "stopped" | "failed":
            return state, status.ended
        case _:
            assert_never(state)


def _causes(seen: Evidence, state: State, ledger: Ledger | None) -> list[Cause]:
    """What explains the state, the first cause first."""
    match state:
        case "queued":
            wait = "its job was submitted, and SLURM cannot be asked here"
            if seen.job is not None:
                wait = f"job {seen.job.number}: {seen.job.wait}"
            before = seen.end.outcome if seen.end else "was killed"
            causes = _causes(seen, before, ledger) if seen.attempt else ()
            return [Cause(kind="queue", text=wait), *causes]
        case "starting" | "training":
            return troubles(seen, ledger)
        case "completed":
            return [*not_learning(seen), *damages(seen)]
        case "stopped":
            return [why_stopped(seen, ledger.num_preemptions if ledger else 0)]
        case "failed" | "was killed":
            refused = seen.reported if seen.status.outcome is None else []
            found = cause_of(seen, refused[0]) if refused else first_cause(seen)
            return [] if found is None else [found]
        case "has not started":
            return never_began(seen)
        case _:
            assert_never(state)


def _next(seen: Evidence, state: State, cause: Cause | None, saved: int) -> str:
    advice = "" if cause is None else ADVICE[cause.kind]
    match state:
        case "has not started":
            return "start it, or look whether its job was submitted"
        case "queued" | "starting" | "training":
            return advice or "wait: it goes on by itself"
        case "completed":
            report = as_command("python", "-m", "pipeline.report", seen.run.path)
            return f"{advice}; {report}" if advice else report
        case "stopped" | "failed" | "was killed":
            begins = f"goes on from step {saved:,}" if saved else "begins again"
            return f"{advice or 'look at its logs'}; the same command {begins}"
        case _:
            assert_never(state)


def ledger_until(seen: Evidence, state: State) -> Ledger | None:
    """The ledger, up to now if the run is at work or queued."""
    is_at_work = seen.status.outcome == "running"
    until = seen.now if is_at_work or state == "queued" else None
    return ledger_of(seen.events, until, is_at_work=is_at_work)


def _details(seen: Evidence, ledger: Ledger | None, others: Sequence[Cause]) -> dict[str, str]:
    """What else may be of interest, by its name."""
    found = {}
    if others:
        found["also"] = "; ".join(cause.text for cause in others)
    starts = of_type(seen.rows, RunEvent)
    if starts:
        target = starts[-1].target_steps
        found["step"] = f"{seen.step:,} of {target:,}, in attempt {len(starts)}"
    if ledger is not None:
        found["so far"] = (
            f"{duration(ledger.total_seconds)}, {ledger.goodput:.0%} of it in steps; "
            f"{counted(ledger.num_lost_steps, 'step')} done again"
        )
    if seen.job is not None:
        where = f" on {seen.job.nodes}" if seen.job.nodes else ""
        found["SLURM"] = f"job {seen.job.number}: {seen.job.state}{where}"
    if seen.error:
        found["last word"] = seen.error
    if any(seen.run.hangs.glob("*.txt")):
        found["hangs"] = f"stacks of ranks that hung are in {seen.run.hangs}"
    log = seen.run.newest_log
    if log is not None:
        found["log"] = str(log)
    return found
