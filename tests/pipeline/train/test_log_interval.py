"""What a log interval says, against the same sums done by hand; when a loss is that of guessing."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from pipeline.ranks.mesh import Mesh
from pipeline.ranks.world import World
from pipeline.run.events import TrainEvent
from pipeline.run.phase import PHASE_LABELS
from pipeline.train.clock import StepTime
from pipeline.train.log_interval import LogInterval, is_guessing
from tests.pipeline.worlds import SINGLE, fused, world_of_equals

LOGITS = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
LABELS = torch.tensor([0, 0, 0])


def interval_of(world: World) -> LogInterval:
    return LogInterval(world, fused(world))


def time_of(data_wait: float, forward_backward: float) -> StepTime:
    phases = dict.fromkeys(PHASE_LABELS, 0.0)
    phases |= {"data_wait": data_wait, "forward_backward": forward_backward}
    return StepTime(num_samples=3, phase_seconds=phases)


def filled(interval: LogInterval) -> LogInterval:
    """Two micro-batches of 3 samples with 2 right answers each, in two seconds."""
    for loss in (6.0, 3.0):
        interval.note_predictions(torch.tensor(loss), LOGITS, LABELS)
    interval.note_time(time_of(0.25, 0.75))
    interval.note_time(time_of(0.25, 0.75))
    interval.norm = torch.tensor(4.0)
    return interval


def reduced(interval: LogInterval) -> TrainEvent:
    ranks = interval.reduce(torch.zeros((), dtype=torch.int64))
    event = interval.event(ranks, step=7, epoch=0.7, learning_rate=0.1, skipped_steps=2)
    return dataclasses.replace(event, time=0.0)


def test_the_fields_of_a_train_event() -> None:
    interval = filled(interval_of(SINGLE))
    interval.wait()
    assert reduced(interval) == TrainEvent(
        step=7,
        epoch=0.7,
        time=0.0,
        loss=1.5,
        top1=4 / 6,
        images_per_second=3.0,
        data_wait_ratio=0.25,
        phase_seconds=dict.fromkeys(PHASE_LABELS, 0.0)
        | {"data_wait": 0.5, "forward_backward": 1.5},
        grad_norm=4.0,
        learning_rate=0.1,
        skipped_steps=2,
    )


def test_ranks_add_up() -> None:
    """Three that work side by side: three times as fast, and all else as one alone."""
    alone = reduced(filled(interval_of(SINGLE)))
    together = reduced(filled(interval_of(world_of_equals(3))))
    assert together == dataclasses.replace(alone, images_per_second=9.0)


def test_two_ranks_of_one_replica_count_its_samples_once() -> None:
    world = world_of_equals(2)
    mesh = Mesh(replica=0, num_replicas=1, column=0, same_replica=None, same_column=None)
    assert reduced(filled(LogInterval(world, mesh))) == reduced(filled(interval_of(SINGLE)))


def test_without_clipping_there_is_no_norm() -> None:
    interval = interval_of(SINGLE)
    interval.note_predictions(torch.tensor(1.0), LOGITS, LABELS)
    interval.note_time(time_of(0.5, 0.5))
    assert reduced(interval).grad_norm is None


def test_many_small_losses_are_not_lost() -> None:
    """In fp32 a sum of 2**24 takes no 1 more."""
    interval = interval_of(SINGLE)
    interval.note_predictions(torch.tensor(2.0**24), LOGITS, LABELS)
    for _ in range(3):
        interval.note_predictions(torch.tensor(1.0), LOGITS, LABELS)
    interval.note_time(time_of(0.5, 0.5))
    assert reduced(interval).loss == (2**24 + 3) / 12


def test_a_loss_that_is_not_a_number_is_reported() -> None:
    interval = interval_of(SINGLE)
    interval.note_predictions(torch.tensor(math.nan), LOGITS, LABELS)
    interval.note_time(time_of(0.5, 0.5))
    assert math.isnan(reduced(interval).loss)


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_within_half_a_percent_of_equal_odds(num_classes: int) -> None:
    chance = math.log(num_classes)
    assert is_guessing(chance, num_classes)
    assert is_guessing(chance * 1.0049, num_classes)
    assert is_guessing(chance * 0.9951, num_classes)
    assert not is_guessing(chance * 1.0051, num_classes)
    assert not is_guessing(chance * 0.9949, num_classes)


def test_one_class_is_no_guess() -> None:
    assert not is_guessing(0.0, 1)
