"""Where the time of each step goes, without making the device wait."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pipeline.metrics.rank import PHASES

_Stamp = float | torch.cuda.Event


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """One step of this rank; `phase_seconds` has every phase of `PHASES` and sums to all of it."""

    num_samples: int
    phase_seconds: dict[str, float]


class StepClock:
    """Stamps the ends of phases: `mark` after each, `end_step` after the last.

    On a GPU the stamps are events in its stream, read when the device has passed them. So
    `data_wait` is what it idled between steps, however far ahead of it the host runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._marks: list[tuple[str, _Stamp]] = []
        self._begin = self._now()
        self._unread: deque[tuple[int, _Stamp, list[tuple[str, _Stamp]]]] = deque()

    def _now(self) -> _Stamp:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def mark(self, phase: str) -> None:
        """What came since the last mark was `phase`."""
        self._marks.append((phase, self._now()))

    def end_step(self, num_samples: int) -> None:
        """The step is over; what came since the last mark was `other`."""
        self.mark("other")
        self._unread.append((num_samples, self._begin, self._marks))
        self._begin, self._marks = self._marks[-1][1], []

    def restart(self) -> None:
        """Begin the next step now: what came since the last one was not training."""
        self._begin = self._now()

    def finished(self) -> Iterator[StepTime]:
        """The steps that the device has done and that were not given out before."""
        while self._unread:
            num_samples, begin, marks = self._unread[0]
            if not _has_passed(marks[-1][1]):
                return
            self._unread.popleft()
            seconds = dict.fromkeys(PHASES, 0.0)
            for phase, stamp in marks:
                seconds[phase] += _seconds_between(begin, stamp)
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
