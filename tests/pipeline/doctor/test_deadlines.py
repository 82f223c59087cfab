"""Questions without an answer."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from pipeline.doctor import deadlines
from pipeline.doctor.deadlines import Answers
from tests.machine import DEADLINE_SECONDS


def test_a_question_without_an_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "ANSWER_SECONDS", 0.01)
    answers, never = Answers(), threading.Event()
    assert answers.to("the disk", never.wait, "unknown") == "unknown"
    monkeypatch.setattr(deadlines, "ANSWER_SECONDS", DEADLINE_SECONDS)
    assert answers.to("the sum", lambda: 1 + 1, 0) == 2
    assert answers.missing == ["the disk"]


def test_a_question_that_fails_is_not_called_stuck() -> None:
    """Even if what it raises is a time-out itself."""
    answers = Answers()
    for error in (PermissionError("no"), TimeoutError("the name server")):

        def fail(error: Exception = error) -> None:
            raise error

        with pytest.raises(OSError, match=str(error)):
            answers.to("the disk", fail, None)
    assert answers.missing == []


def test_a_meeting_that_takes_too_long_ends_the_rank() -> None:
    script = """
import threading
from pipeline.doctor import deadlines

deadlines.MEETING_SECONDS = 0.1
with deadlines.deadline("the reduction"):
    threading.Event().wait()
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "error: the reduction is stuck: no answer within 0.1 s\n"
