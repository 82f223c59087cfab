"""The estimate of what is left: what it is of, and how steady it is."""

from __future__ import annotations

import itertools
import random

import pytest

from pipeline.config.schema import CheckpointConfig, Config, EvaluationConfig
from pipeline.data.order.partition import BatchPlan
from pipeline.train.due import Eta, is_due, num_due

STEPS_PER_EPOCH, TARGET = 20, 400
PLAN = BatchPlan(
    num_samples=20, global_batch_size=1, num_replicas=1, accumulation_steps=1, drop_last=True
)


def eta() -> Eta:
    config = Config(
        evaluation=EvaluationConfig(every_epochs=1), checkpoint=CheckpointConfig(every_epochs=1)
    )
    return Eta(config, PLAN, TARGET)


def test_what_is_still_due_is_counted() -> None:
    for every, target, per_epoch in itertools.product((0, 0.01, 0.5, 1, 3), (1, 9, 10, 31), (4, 5)):
        for step in range(target + 1):
            left = [
                is_due(later, every, per_epoch, target) for later in range(step + 1, target + 1)
            ]
            assert num_due(step, every, per_epoch, target) == sum(left)


def test_at_a_steady_pace_it_is_what_is_left() -> None:
    """Steps of 2 s; an evaluation of 7 s and a save of 3 s after each epoch."""
    one = eta()
    for step in range(10, TARGET + 1, 10):
        one.step.add(20.0, 10)
        left = num_due(step - 1, 1, STEPS_PER_EPOCH, TARGET)
        measured = step > STEPS_PER_EPOCH
        assert one.seconds_after(step) == pytest.approx(2 * (TARGET - step) + 10 * left * measured)
        if step % STEPS_PER_EPOCH == 0:
            one.evaluation.add(7.0)
            one.save.add(3.0)
    assert one.seconds_after(TARGET) == 10, "those of the last step"


def test_it_lies_between_those_of_the_fastest_and_of_the_slowest_interval() -> None:
    numbers = random.Random(0)
    one, paces = eta(), []
    for step in range(10, TARGET, 10):
        paces.append(numbers.uniform(0.5, 3.0))
        one.step.add(10 * paces[-1], 10)
        assert min(paces) <= one.seconds_after(step) / (TARGET - step) <= max(paces)


def test_intervals_of_which_one_takes_twice_as_long_as_the_other_hardly_move_it() -> None:
    one, shown = eta(), []
    for number, step in enumerate(range(5, 300, 5)):
        one.step.add(5.0 * (1 + number % 2), 5)
        shown.append(one.seconds_after(step) / (TARGET - step))
    assert max(shown[10:]) < 1.1 * min(shown[10:])


def test_it_follows_a_pace_that_has_changed() -> None:
    one = eta()
    for pace in (1.0, 4.0):
        for _ in range(40):
            one.step.add(5 * pace, 5)
        assert one.seconds_after(200) == pytest.approx(200 * pace, rel=0.05)


def test_before_anything_is_measured_nothing_is_said() -> None:
    assert eta().seconds_after(0) == 0
