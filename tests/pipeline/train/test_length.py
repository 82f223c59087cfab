"""Which runs may change their length, and what tells those that may not."""

from __future__ import annotations

import pytest

from pipeline.config.optim import ScheduleConfig
from pipeline.config.schema import Config, EvaluationConfig
from pipeline.train.same_run import why_not

STEPS_PER_EPOCH = 8


def reason(
    schedule: ScheduleConfig, done_epochs: float, *, every: float = 1, was: float = 10, now: float
) -> str | None:
    evaluation = EvaluationConfig(every_epochs=every)
    config = Config(schedule=schedule, evaluation=evaluation, epochs=now)
    return why_not(config, was, STEPS_PER_EPOCH, round(done_epochs * STEPS_PER_EPOCH))


@pytest.mark.parametrize(
    "schedule",
    [
        ScheduleConfig(),
        ScheduleConfig(conv1_step_epochs=(3.0,), conv1_freeze_epoch=5.0),
        ScheduleConfig(name="step", step_epochs=(4.0, 12.0)),
        ScheduleConfig(name="step", step_epochs=(4.0,), biases="constant"),
        ScheduleConfig(name="plateau"),
    ],
    ids=["constant", "conv1 alone", "step", "biases that stay", "plateau"],
)
def test_rates_that_do_not_look_at_the_length_let_it_change(schedule: ScheduleConfig) -> None:
    assert reason(schedule, 10, now=20) is None
    assert reason(schedule, 3.5, now=5) is None


@pytest.mark.parametrize(
    "schedule",
    [
        ScheduleConfig(name="cosine"),
        ScheduleConfig(name="linear"),
        ScheduleConfig(name="dexp", final_ratio=0.1),
        ScheduleConfig(warmup_ratio=0.2),
        ScheduleConfig(biases="halfway"),
    ],
    ids=lambda schedule: f"{schedule.name} {schedule.warmup_ratio} {schedule.biases}",
)
def test_rates_that_span_the_run_do_not(schedule: ScheduleConfig) -> None:
    found = reason(schedule, 10, now=20)
    assert found is not None
    assert found.startswith("the learning rates depend on the length of the run, and step ")


def test_what_is_not_done_yet_may_still_change() -> None:
    """The biases' drop at half of the run lies before the run's end, and after what is done."""
    schedule = ScheduleConfig(biases="halfway")
    assert reason(schedule, 4, now=20) is None
    assert reason(schedule, 4, now=6) is not None
    assert reason(ScheduleConfig(name="dexp", final_ratio=0.1), 2, now=11) is None


def test_the_evaluation_after_the_last_step_counts_where_rates_look_at_evaluations() -> None:
    plateau = ScheduleConfig(name="plateau")
    assert reason(plateau, 10, every=0, now=20) == (
        "the learning rates depend on the evaluations, and one of the two lengths has one after "
        "step 80, which is done"
    )
    assert reason(plateau, 10, every=4, now=20) is not None
    assert reason(plateau, 9, every=4, now=20) is None
    assert reason(ScheduleConfig(), 10, every=0, now=20) is None


def test_the_same_length_is_no_change() -> None:
    assert reason(ScheduleConfig(name="cosine"), 10, now=10) is None
