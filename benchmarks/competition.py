"""Runs competitors in turn on the same cores, each a process that is ready before round one.

What a competitor's process has to say is in `benchmarks.rivals.rounds`. One that hangs, dies or is
not installed is ended by its own process group, left out of the rounds after, and named with the
reason; nobody waits for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from benchmarks.measurement import spread

_ROOT = Path(__file__).parents[1]
_LEAVE_SECONDS = 10.0
_POLL_SECONDS = 0.02
_SETTLE_SECONDS = 0.3
"""Between two competitors, for what the one before has still under way."""


class CompetitorError(Exception):
    """A competitor has no figures; says why."""


class MissingError(CompetitorError):
    """It is not installed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Competitor:
    """What is run in `num_ranks` processes at once; each reads its part of `num_images` a round."""

    name: str
    module: str
    num_images: int
    options: tuple[object, ...] = ()
    num_ranks: int = 1
    python: str = sys.executable


class Process:
    """A child that answers a line of JSON to each line, within a deadline or not at all."""

    def __init__(self, command: Sequence[object]) -> None:
        self._child = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
            start_new_session=True,  # its own workers end with it
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._requests: IO[str] = self._child.stdin
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._collect, args=(self._child.stdout,), daemon=True).start()

    @property
    def pid(self) -> int:
        return self._child.pid

    def _collect(self, answers: IO[str]) -> None:
        with answers:
            for line in answers:
                self._lines.put(line)
        self._lines.put("")

    def request(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # what is wrong shows in the answer
            self._requests.write("\n")
            self._requests.flush()

    def answer(self, seconds: float) -> dict[str, Any]:
        """The next answer; without one after that time the process is ended.

        Raises `CompetitorError` then, or if the process has left.
        """
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            self.close(leave_seconds=0)
            raise CompetitorError(f"no answer within {seconds:g} s") from None
        if not line:
            self.close()
            raise CompetitorError(f"left with exit code {self._child.returncode}, not an answer")
        answer: dict[str, Any] = json.loads(line)
        if "missing" in answer:
            raise MissingError(answer["missing"])
        return answer

    def close(self, leave_seconds: float = _LEAVE_SECONDS) -> None:
        """Let it leave, then end it and all that it has started."""
        if self._child.returncode is not None:
            return
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        deadline = time.monotonic() + leave_seconds
        while not self._has_left() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def _has_left(self) -> bool:
        """Without collecting it: until then no other process can get its number."""
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._child.pid, flags) is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(slots=True)
class Result:
    """What the rounds gave, by the competitors' names."""

    rates: dict[str, list[float]] = field(default_factory=dict)
    """Images a second, one figure a round; only of those that took part to the end."""
    missing: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)

    def figures(self, ours: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """With ratios, round by round, of each of `ours` to those that it is measured by."""
        ratios = {
            f"{name} / {other}": spread(self.ratios(name, other), 3)
            for name, others in ours.items()
            for other in others
            if name in self.rates and other in self.rates
        }
        return {
            "images_per_second": {name: spread(rates, 0) for name, rates in self.rates.items()},
            "ratios": ratios,
            "missing": self.missing,
            "failed": self.failed,
            "versions": self.versions,
        }

    def ratios(self, name: str, other: str) -> list[float]:
        return [a / b for a, b in zip(self.rates[name], self.rates[other], strict=True)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """What all competitors of a contest share."""

    images: Path
    setting: str
    scratch: Path
    ready_seconds: float = 900.0
    """Until a competitor has written its data format, compiled and warmed up."""
    round_seconds: float = 120.0

    def commands(self, competitor: Competitor) -> Iterator[list[object]]:
        """One a rank; `num_images` is divided among them."""
        for rank in range(competitor.num_ranks):
            scratch = self.scratch / re.sub(r"\W+", "-", competitor.name) / f"{rank}"
            yield [
                *(competitor.python, "-m", competitor.module),
                *("--images", self.images, "--setting", self.setting, "--scratch", scratch),
                *("--num-images", competitor.num_images // competitor.num_ranks),
                *("--rank", rank, "--num-ranks", competitor.num_ranks, *competitor.options),
            ]


def compete(competitors: Sequence[Competitor], course: Course, rounds: int) -> Result:
    """Get all ready, one after the other, then have each run once a round, in turn."""
    result = Result()
    with contextlib.ExitStack() as stack:
        running: dict[str, list[Process]] = {}
        for competitor in competitors:
            _say(f"getting ready: {competitor.name}")
            commands = course.commands(competitor)
            processes = [stack.enter_context(Process(command)) for command in commands]
            with _noting(result, competitor.name, processes):
                answers = [process.answer(course.ready_seconds) for process in processes]
                result.versions[competitor.name] = answers[0]["ready"]
                running[competitor.name] = processes
        for number in range(rounds):
            for name, processes in list(running.items()):
                time.sleep(_SETTLE_SECONDS)
                with _noting(result, name, processes):
                    rate = _run_round(processes, course.round_seconds)
                    result.rates.setdefault(name, []).append(rate)
                    _say(f"round {number + 1}: {name}: {rate:,.0f} images/s")
                if name in result.failed:
                    del running[name]
    return result


def _run_round(processes: Sequence[Process], seconds: float) -> float:
    """Images a second of all of them together, by the slowest one's time."""
    for process in processes:
        process.request()
    answers = [process.answer(seconds) for process in processes]
    num_images = sum(answer["images"] for answer in answers)
    return float(num_images / max(answer["seconds"] for answer in answers))


@contextlib.contextmanager
def _noting(result: Result, name: str, processes: Sequence[Process]) -> Iterator[None]:
    """If a competitor has no figures: note why, and end what is left of it."""
    try:
        yield
    except CompetitorError as error:
        reasons = result.missing if isinstance(error, MissingError) else result.failed
        reasons[name] = str(error)
        result.rates.pop(name, None)
        _say(f"{name} is left out: {error}")
        for process in processes:
            process.close(leave_seconds=0)


def _say(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")
