"""Where the time of each step goes, without making the device wait; and that of starting."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from pipeline.run.phase import PHASE_LABELS, Label, Phase

_Stamp = float | torch.cuda.Event


class StartClock:
    """Adds up what this rank does before its first step, in seconds."""

    def __init__(self) -> None:
        self.seconds = {"starting": 0.0, "loading": 0.0, "compiling": 0.0}
        self._begin = time.perf_counter()

    def lap(self, name: Literal["starting", "loading", "compiling"]) -> None:
        """All since the call before was for this."""
        now = time.perf_counter()
        self.seconds[name] += now - self._begin
        self._begin = now


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """One step of this rank; `phase_seconds` has all of `PHASE_LABELS`, which sum to it."""

    num_samples: int
    phase_seconds: dict[Label, float]


class StepClock:
    """Stamps the beginning of each phase, and the end of each step.

    On a GPU the stamps are events in its stream, read when the device has passed them. So
    `data_wait` is the device's idle time between steps, however far ahead the host runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._label: Label | None = None
        self._begin = self._now()
        self._marks: list[tuple[Label, _Stamp]] = []
        """The ends of the step's phases so far."""
        self._unread: deque[tuple[int, _Stamp, list[tuple[Label, _Stamp]]]] = deque()

    def _now(self) -> _Stamp:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def enter(self, phase: Phase) -> None:
        """`phase` begins, and the one before ends; after one outside of steps a step begins."""
        self._end_phase()
        self._label = phase.label

    def end_step(self, num_samples: int) -> None:
        """The step is over, and the next one begins in the same phase."""
        self._end_phase()
        self._unread.append((num_samples, self._begin, self._marks))
        self._begin, self._marks = self._marks[-1][1], []

    def _end_phase(self) -> None:
        if self._label is None:
            self._begin, self._marks = self._now(), []
        else:
            self._marks.append((self._label, self._now()))

    def finished(self) -> Iterator[StepTime]:
        """The steps that the device has done since the last call."""
        while self._unread:
            num_samples, begin, marks = self._unread[0]
            if not _has_passed(marks[-1][1]):
                return
            self._unread.popleft()
            seconds = dict.fromkeys(PHASE_LABELS, 0.0)
            for label, stamp in marks:
                seconds[label] += _seconds_between(begin, stamp)
                begin = stamp
            yield StepTime(num_samples=num_samples, phase_seconds=seconds)


def _has_passed(stamp: _Stamp) -> bool:
    return isinstance(stamp, float) or stamp.query()


def _seconds_between(begin: _Stamp, end: _Stamp) -> float:
    if isinstance(begin, float):
        assert isinstance(end, float)
        return end - begin
    assert not isinstance(end, float)
    return float(begin.elapsed_time(end)) / 1000
