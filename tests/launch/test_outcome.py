"""What the events say of how a job ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.__main__ import main
from launch.outcome import outcome_of
from pipeline.run.ending import FailureCause, StopSource
from pipeline.run.events import EventLog
from tests.pipeline.fake_run import eval_fields, start_fields

Row = dict[str, Any]


def rows(*parts: Row) -> list[Row]:
    """One second after the other."""
    return [{"time": float(second), **part} for second, part in enumerate(parts)]


def begin(step: int) -> Row:
    return {"kind": "run", "step": step}


def signal(source: str) -> Row:
    return {"kind": "signal", "step": 0, "source": source}


def save(step: int) -> Row:
    return {"kind": "checkpoint", "step": step}


def end(outcome: str, step: int, cause: FailureCause | None = None) -> Row:
    fields = {} if cause is None else {"error": "rank 1 on n2: any sentence", "cause": cause}
    return {"kind": "end", "step": step, "outcome": outcome, **fields}


@pytest.mark.parametrize(
    ("expected", "history"),
    [
        ("failed", []),
        ("completed", rows(begin(0), end("completed", 9))),
        ("completed", rows(begin(0), end("stopped", 5))),  # where --max-steps said
        ("failed", rows(begin(0), end("failed", 5))),
        ("failed", rows(begin(0), {"kind": "train", "step": 5})),  # killed
        ("interrupted", rows(begin(0), signal("SIGUSR1"), end("stopped", 5))),
        ("interrupted", rows(begin(0), begin(4), signal("SIGTERM"), end("stopped", 4))),
        ("stuck", rows(begin(4), signal("SIGUSR1"), end("stopped", 4))),
        ("interrupted", rows(begin(4), signal("SIGUSR2"), end("stopped", 4))),
        ("interrupted", rows(begin(4), signal("SIGTERM"), end("stopped", 4))),
        ("stopped", rows(begin(0), signal("STOP file"), end("stopped", 5))),
        ("completed", rows(begin(0), signal("SIGTERM"), begin(5), end("completed", 9))),
    ],
)
def test_of_a_whole_history(expected: str, history: list[Row]) -> None:
    assert outcome_of(history) == expected


def test_of_the_last_job_alone() -> None:
    first = rows(begin(0), signal("SIGUSR1"), end("stopped", 5))
    assert outcome_of(first, since=10, code=1) == "failed", "the job has left nothing"
    assert outcome_of(first, since=10) == "completed", "it had nothing to do: --max-steps 5"
    assert outcome_of(first[:1], since=10) == "completed", "the same, after a kill"
    done = rows(begin(0), end("completed", 9))
    assert outcome_of(done, since=10) == "completed"
    assert outcome_of(done, since=10, code=1) == "failed", "it was refused"
    paused = rows(begin(0), end("stopped", 5))
    assert outcome_of(paused, since=10, code=1) == "failed"
    second = [
        *first,
        *({**row, "time": 11.0} for row in (begin(5), signal("SIGUSR1"), end("stopped", 5))),
    ]
    assert outcome_of(second, since=10) == "stuck"


@pytest.mark.parametrize(
    ("expected", "asked", "history"),
    [
        ("stuck", "USR1", []),
        ("interrupted", "USR2", []),
        ("interrupted", "TERM", []),
        ("stuck", "USR1", rows(begin(4), {"kind": "train", "step": 5})),
        ("interrupted", "USR1", rows(begin(4), save(5), {"kind": "train", "step": 6})),
        ("interrupted", "USR1", rows(begin(4), save(5), end("failed", 5), begin(5))),
        ("stuck", "USR1", rows(begin(4), end("failed", 5), begin(4))),
        ("interrupted", "TERM", rows(begin(4), {"kind": "train", "step": 5})),
        ("failed", "TERM", rows(begin(4), end("failed", 5))),
        ("failed", "TERM", rows(end("failed", 0))),
        ("interrupted", "TERM", rows(begin(4), end("failed", 5, "lost_rank"))),
        ("interrupted", "USR1", rows(begin(4), save(5), end("failed", 5, "lost_rank"))),
        ("stuck", "USR1", rows(begin(4), end("failed", 5, "lost_rank"))),
        ("stopped", "USR2", rows(begin(4), signal("STOP file"), end("stopped", 5))),
        ("completed", "USR1", rows(begin(4), end("completed", 5))),
    ],
)
def test_of_a_job_that_was_asked_to_leave(expected: str, asked: str, history: list[Row]) -> None:
    source = StopSource(f"SIG{asked}")
    assert outcome_of(history, code=1, asked=source) == expected
    before = rows(begin(0), signal("SIGUSR1"), end("stopped", 4))
    later = [{**row, "time": row["time"] + 10} for row in history]
    assert outcome_of(before + later, since=10, code=1, asked=source) == expected


def test_a_host_whose_clock_is_late_has_begun_too() -> None:
    """Its first rows seem to be older than the job."""
    late = rows(begin(0), {"kind": "train", "step": 3}, save(5), signal("SIGUSR1"))
    late.append({**end("stopped", 5), "time": 4.0})
    assert outcome_of(late, since=1, code=1, asked=StopSource.SIGUSR1) == "interrupted"


def test_the_last_word_of_an_earlier_start_is_not_that_of_this_one() -> None:
    """It has made room for this one, which a signal ended before its first word."""
    earlier = rows(begin(0), save(5), signal("STOP file"), end("stopped", 5))
    assert outcome_of(earlier, since=1, code=1, asked=StopSource.SIGUSR2) == "interrupted"


def test_the_command_prints_one_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["outcome", str(tmp_path), "--since", "0"]
    asked = [
        ["--asked", ""],
        ["--code", "1", "--asked", "TERM"],
        ["--code", "1", "--asked", "USR1"],
    ]
    assert [main([*words, *more]) for more in asked] == [0, 0, 0]
    log = EventLog(tmp_path / "events.jsonl")
    log.write("run", step=0, epoch=0.0, **start_fields())
    log.write("end", step=9, epoch=1.0, outcome="completed")
    log.close()
    assert main(["outcome", str(tmp_path), "--since", "0"]) == 0
    log = EventLog(tmp_path / "events.jsonl")
    log.write("eval", step=9, epoch=1.0, **eval_fields(5, 9, 10, 10) | {"by": "evaluate"})
    log.close()
    assert main(["outcome", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "failed\ninterrupted\nstuck\ncompleted\ncompleted\n"
