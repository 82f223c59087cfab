"""Where the time goes: every second of a step in one phase, and in the right one."""

from __future__ import annotations

import pytest
import torch

from pipeline.run.phase import PHASE_LABELS, Phase
from pipeline.train import clock as module
from pipeline.train.clock import StepClock, StepTime

CPU = torch.device("cpu")
NAP_SECONDS = 0.05


class FakeTime:
    """A look at it takes a moment, and a nap its time: on a busy machine anything may take longer.

    Set in place of the module `time`.
    """

    now = 0.0

    def perf_counter(self) -> float:
        self.now += NAP_SECONDS / 1000
        return self.now


TIME = FakeTime()


@pytest.fixture(autouse=True)
def _fake_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "time", TIME)


def nap() -> None:
    TIME.now += NAP_SECONDS


def step(clock: StepClock, slow_phase: Phase | None = None) -> None:
    """A step of two micro-batches that lingers in one phase."""
    micro_batch = (Phase.READING, Phase.COPYING, Phase.COMPUTING, Phase.AVERAGING, Phase.COUNTING)
    for phase in (*micro_batch, *micro_batch, Phase.UPDATING, Phase.COUNTING):
        clock.enter(phase)
        if phase is slow_phase:
            nap()
            slow_phase = None
    clock.end_step(32)


def seconds_of(measured: StepTime) -> float:
    return sum(measured.phase_seconds.values())


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase.label])
def test_a_delay_counts_under_the_label_of_its_phase_and_no_other(phase: Phase) -> None:
    clock = StepClock(CPU)
    clock.enter(phase)
    nap()
    step(clock)
    (measured,) = clock.finished()
    assert set(measured.phase_seconds) == set(PHASE_LABELS)
    assert phase.label is not None
    assert measured.phase_seconds[phase.label] >= NAP_SECONDS
    assert seconds_of(measured) - measured.phase_seconds[phase.label] < NAP_SECONDS


def test_phases_of_all_steps_sum_to_the_wall_clock() -> None:
    begin = TIME.perf_counter()
    clock = StepClock(CPU)
    for phase in (Phase.READING, Phase.UPDATING, Phase.COUNTING):
        step(clock, phase)
    end = TIME.perf_counter()
    steps = list(clock.finished())
    assert [measured.num_samples for measured in steps] == [32, 32, 32]
    seconds = sum(map(seconds_of, steps))
    assert 3 * NAP_SECONDS <= seconds <= end - begin
    assert end - begin - seconds < NAP_SECONDS


@pytest.mark.parametrize("phase", [phase for phase in Phase if not phase.label])
def test_what_is_no_part_of_a_step_is_in_none(phase: Phase) -> None:
    """Nor is what came between the last step and it; the first step begins with its first phase."""
    clock = StepClock(CPU)
    nap()
    step(clock)
    clock.enter(Phase.LOGGING)
    nap()
    clock.enter(phase)
    nap()
    step(clock)
    steps = list(clock.finished())
    assert len(steps) == 2
    assert all(seconds_of(measured) < NAP_SECONDS for measured in steps)


def test_time_between_steps_is_the_next_one_s() -> None:
    clock = StepClock(CPU)
    step(clock)
    clock.enter(Phase.LOGGING)
    nap()
    step(clock)
    _, second = clock.finished()
    assert second.phase_seconds["other"] >= NAP_SECONDS
    assert second.phase_seconds["data_wait"] < NAP_SECONDS


def test_a_step_is_given_out_once_and_in_order() -> None:
    clock = StepClock(CPU)
    assert list(clock.finished()) == []
    clock.enter(Phase.READING)
    clock.end_step(1)
    clock.end_step(2)
    assert [measured.num_samples for measured in clock.finished()] == [1, 2]
    assert list(clock.finished()) == []


class FakeEvent:
    """A CUDA event at a time that the test gives it; it has passed when the test says so."""

    now = 0.0
    num_passed = 0
    made: list[FakeEvent]

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.milliseconds = FakeEvent.now
        FakeEvent.made.append(self)

    def record(self) -> None:
        pass

    def query(self) -> bool:
        return FakeEvent.made.index(self) < FakeEvent.num_passed

    def elapsed_time(self, end: FakeEvent) -> float:
        assert self.query()
        assert end.query(), "the device was asked for a time it does not know yet"
        return end.milliseconds - self.milliseconds


def test_on_a_gpu_nobody_waits_for_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    FakeEvent.made, FakeEvent.num_passed, FakeEvent.now = [], 0, 0.0
    clock = StepClock(torch.device("cuda"))
    for number in (1, 2):
        clock.enter(Phase.COMPUTING)
        FakeEvent.now += 250 * number
        clock.enter(Phase.COUNTING)
        FakeEvent.now += 500
        clock.end_step(number)
    assert list(clock.finished()) == []
    FakeEvent.num_passed = 4
    (first,) = clock.finished()
    assert first == StepTime(
        num_samples=1,
        phase_seconds=dict.fromkeys(PHASE_LABELS, 0.0) | {"forward_backward": 0.25, "other": 0.5},
    )
    FakeEvent.num_passed = 7
    (second,) = clock.finished()
    assert seconds_of(second) == 1.0
