"""What the events say of how a job ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.__main__ import main
from launch.outcome import outcome_of
from pipeline.run.directory import RunDirectory
from pipeline.run.ending import EndOutcome, FailureCause, StopSource
from pipeline.run.event_log import append, end_of
from pipeline.run.events import EndEvent, Event, SignalEvent
from tests.pipeline.fake_run import (
    RunHistory,
    checkpoint_fields,
    eval_fields,
    event,
    start_fields,
    train_fields,
)


def rows(*events: Event) -> list[Event]:
    """One second after the other."""
    return [replace(event, time=float(second)) for second, event in enumerate(events)]


def begin(step: int) -> Event:
    started: Event = event("run", step, **start_fields())
    return started


def trained(step: int) -> Event:
    done: Event = event("train", step, **train_fields(step))
    return done


def signal(source: str) -> Event:
    return SignalEvent(step=0, epoch=0.0, source=source)


def save(step: int) -> Event:
    saved: Event = event("checkpoint", step, **checkpoint_fields("periodic"))
    return saved


def end(outcome: EndOutcome, step: int, cause: FailureCause | None = None) -> Event:
    error = None if cause is None else "rank 1 on n2: any sentence"
    return EndEvent(step=step, epoch=0.0, outcome=outcome, error=error, cause=cause)


@pytest.mark.parametrize(
    ("expected", "history"),
    [
        ("failed", []),
        ("completed", rows(begin(0), end("completed", 9))),
        ("completed", rows(begin(0), end("stopped", 5))),  # where --max-steps said
        ("failed", rows(begin(0), end("failed", 5))),
        ("failed", rows(begin(0), trained(5))),  # killed
        ("interrupted", rows(begin(0), signal("SIGUSR1"), end("stopped", 5))),
        ("interrupted", rows(begin(0), begin(4), signal("SIGTERM"), end("stopped", 4))),
        ("stuck", rows(begin(4), signal("SIGUSR1"), end("stopped", 4))),
        ("interrupted", rows(begin(4), signal("SIGUSR2"), end("stopped", 4))),
        ("interrupted", rows(begin(4), signal("SIGTERM"), end("stopped", 4))),
        ("stopped", rows(begin(0), signal("STOP file"), end("stopped", 5))),
        ("completed", rows(begin(0), signal("SIGTERM"), begin(5), end("completed", 9))),
    ],
)
def test_of_a_whole_history(expected: str, history: list[Event]) -> None:
    assert outcome_of(history) == expected


def test_of_the_last_job_alone() -> None:
    assert outcome_of([], code=1, is_new=False) == "failed", "the job has left nothing"
    assert outcome_of([], is_new=False) == "completed", "it had nothing to do, as by --max-steps"
    second = rows(begin(5), signal("SIGUSR1"), end("stopped", 5))
    assert outcome_of(second, is_new=False) == "stuck"


@pytest.mark.parametrize(
    ("expected", "asked", "history"),
    [
        ("stuck", "USR1", []),
        ("interrupted", "USR2", []),
        ("interrupted", "TERM", []),
        ("stuck", "USR1", rows(begin(4), trained(5))),
        ("interrupted", "USR1", rows(begin(4), save(5), trained(6))),
        ("interrupted", "USR1", rows(begin(4), save(5), end("failed", 5), begin(5))),
        ("stuck", "USR1", rows(begin(4), end("failed", 5), begin(4))),
        ("interrupted", "TERM", rows(begin(4), trained(5))),
        ("failed", "TERM", rows(begin(4), end("failed", 5))),
        ("failed", "TERM", rows(end("failed", 0))),
        ("interrupted", "TERM", rows(begin(4), end("failed", 5, "lost_rank"))),
        ("interrupted", "USR1", rows(begin(4), save(5), end("failed", 5, "lost_rank"))),
        ("stuck", "USR1", rows(begin(4), end("failed", 5, "lost_rank"))),
        ("stopped", "USR2", rows(begin(4), signal("STOP file"), end("stopped", 5))),
        ("completed", "USR1", rows(begin(4), end("completed", 5))),
    ],
)
def test_of_a_job_that_was_asked_to_leave(expected: str, asked: str, history: list[Event]) -> None:
    source = StopSource(f"SIG{asked}")
    assert outcome_of(history, code=1, asked=source) == expected
    assert outcome_of(history, code=1, asked=source, is_new=False) == expected


def test_a_clock_that_is_set_back_changes_no_outcome() -> None:
    history = rows(begin(0), signal("SIGTERM"), end("stopped", 5))
    before = [replace(row, time=100.0 - row.time) for row in history]
    assert outcome_of(before) == "interrupted"


def test_a_stop_that_was_agreed_on_holds_if_the_save_did_not_end() -> None:
    """The file STOP is removed by then: queued again, the job would go on."""
    history = rows(begin(0), trained(3), signal("STOP file"))
    assert outcome_of(history, code=1, asked=StopSource.SIGUSR1) == "stopped"


def test_the_last_word_of_an_earlier_start_is_not_that_of_this_one() -> None:
    """It has made room for this one, which a signal ended before its first word."""
    earlier = rows(save(5), signal("STOP file"), end("stopped", 5))
    assert outcome_of(earlier, code=1, asked=StopSource.SIGUSR2) == "interrupted"


def test_the_command_prints_one_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["outcome", str(tmp_path), "--after", "0"]
    asked = [
        ["--asked", ""],
        ["--code", "1", "--asked", "TERM"],
        ["--code", "1", "--asked", "USR1"],
    ]
    assert [main([*words, *more]) for more in asked] == [0, 0, 0]
    history = RunHistory(RunDirectory(tmp_path))
    history.write("run", 0, **start_fields())
    history.write("end", 9, outcome="completed")
    history.close()
    assert main(["outcome", str(tmp_path), "--after", "0"]) == 0
    history = RunHistory(RunDirectory(tmp_path))
    history.write("eval", 9, **eval_fields(5, 9, 10, 10) | {"by": "evaluate"})
    history.close()
    assert main(["outcome", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "failed\ninterrupted\nstuck\ncompleted\ncompleted\n"


@pytest.mark.parametrize(
    ("kind", "code", "expected"),
    [
        ("end", 1, "failed"),
        ("end", 0, "completed"),
        ("submit", 0, "failed"),
    ],
)
def test_rows_from_before_the_job_are_of_others(
    kind: str, code: int, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """But who has only been submitted, and leaves nothing, was not done before."""
    run = RunDirectory(tmp_path)
    fields: dict[str, Any] = (
        {"outcome": "completed"} if kind == "end" else {"to": "slurm", "job": "7"}
    )
    append(run.events, event(kind, 9, **fields))
    words = ["outcome", str(tmp_path), "--after", str(end_of(run.events)), "--code", str(code)]
    assert main(words) == 0
    assert capsys.readouterr().out == f"{expected}\n"


def test_no_row_is_behind_less_than_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A slice would take it for the last bytes."""
    with pytest.raises(SystemExit) as ended:
        main(["outcome", str(tmp_path), "--after", "-5"])
    assert ended.value.code == 2
    assert "--after is -5; expected 0 or more" in capsys.readouterr().err
