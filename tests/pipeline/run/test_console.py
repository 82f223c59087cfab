"""A console, and one that cannot be written to."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.run.console import Console
from tests.machine import DEADLINE_SECONDS
from tests.pipeline.monitoring import REPOSITORY


def test_lines_are_whole_and_flushed() -> None:
    stream = io.StringIO()
    console = Console(stream)
    console.table({"a": "1", "longer": "2"})
    assert stream.getvalue() == "  a       1\n  longer  2\n"
    Console(None).line("none at all is no error")


@pytest.mark.parametrize("kind", ["full disk", "reader has left"])
def test_a_process_outlives_its_console(kind: str) -> None:
    """It goes on, and its exit code is its own: not that of Python's last flush."""
    program = (
        "import sys; from data_prep.shard_set.streams import open_streams; open_streams();"
        "from pipeline.run.console import Console; console = Console(sys.stdout);"
        "console.line('one →'); console.line('two'); sys.exit(75)"
    )
    command = [sys.executable, "-c", program]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    if kind == "full disk":
        with Path("/dev/full").open("wb") as full:
            child = subprocess.Popen(
                command, stdout=full, stderr=subprocess.PIPE, cwd=REPOSITORY, env=environment
            )
    else:
        child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=REPOSITORY,
            env=environment,
        )
        assert child.stdout is not None
        child.stdout.close()
    assert child.stderr is not None
    with child, child.stderr as errors:
        assert (errors.read(), child.wait(DEADLINE_SECONDS)) == (b"", 75)
