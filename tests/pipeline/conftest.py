"""What all tests of the pipeline start from."""

from __future__ import annotations

import pytest

from pipeline.explain import system
from pipeline.metrics import discovery, publisher
from tests.machine import DEADLINE_SECONDS


@pytest.fixture(autouse=True)
def answers_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: of a disk, an exporter and a program that are there, however busy all is.

    The product goes on after a few seconds, and then says something else.
    """
    monkeypatch.setattr(publisher, "CLOSE_SECONDS", DEADLINE_SECONDS)
    monkeypatch.setattr(discovery, "_ANSWER_SECONDS", DEADLINE_SECONDS)
    monkeypatch.setattr(system, "_ANSWER_SECONDS", DEADLINE_SECONDS)
