"""Runs work that needs ffcv, in processes that can be killed, limited and waited for."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.data_prep.raw_data import without_progress
from tests.machine import DEADLINE_SECONDS, skip

_REPOSITORY = Path(__file__).parents[1]
_POLL_SECONDS = 0.01


def require_ffcv() -> None:
    """Without ffcv the test is skipped, but fails in CI."""
    if importlib.util.find_spec("ffcv") is None:
        skip("ffcv is not installed: call 'make ffcv', which says what it needs")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended."""

    code: int
    output: str
    errors: str


class Job:
    """A process that was started by `FfcvProcess`."""

    def __init__(self, server: FfcvProcess, pid: int, output: Path, errors: Path) -> None:
        self.pid = pid
        self._server = server
        self._output = output
        self._errors = errors
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            self._code = self._server.ask(pid=self.pid)
        return self._code

    def wait(self, seconds: float = DEADLINE_SECONDS) -> Outcome:
        """Its outcome; kills it and fails the test if it does not end in time."""
        deadline = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                pytest.fail(f"it hangs: {self._errors.read_text()}")
            time.sleep(_POLL_SECONDS)
        errors = without_progress(self._errors.read_text())
        return Outcome(code, self._output.read_text(), errors)


class FfcvProcess:
    """A process in which ffcv is loaded once, because that takes seconds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._num_jobs = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.ffcv_server"],
            cwd=_REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(request)}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process ended: see what it wrote to standard error"
        return json.loads(answer)

    def start(self, **request: Any) -> Job:
        """Start one of the jobs of `tests.ffcv_server`."""
        self._num_jobs += 1
        output, errors = (self._folder / f"{self._num_jobs}.{end}" for end in ("out", "err"))
        pid = self.ask(output=str(output), errors=str(errors), **request)
        return Job(self, pid, output, errors)

    def start_beton(self, shards: Path, path: Path, **request: Any) -> Job:
        """Start `python -m data_prep beton`."""
        return self.start(arguments=[str(shards), str(path)], **request)

    def write_beton(self, shards: Path, path: Path) -> Path:
        """Write a `.beton`; returns its path."""
        outcome = self.start_beton(shards, path).wait()
        assert (outcome.code, outcome.errors) == (0, "")
        return path

    def load(self, path: Path) -> Mapping[str, npt.NDArray[Any]]:
        """What ffcv's own loader and reader find in a `.beton`; see `tests.ffcv_server.load`."""
        to = path.with_suffix(".npz")
        outcome = self.start(load=str(path), to=str(to)).wait()
        assert outcome.code == 0, outcome.errors
        with np.load(to) as arrays:
            return dict(arrays)

    def close(self) -> None:
        self._process.communicate(timeout=DEADLINE_SECONDS)
