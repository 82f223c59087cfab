"""What the console shows of a run."""

from __future__ import annotations

import pytest

from pipeline.config.model import ModelConfig
from pipeline.config.optim import OptimConfig, ScheduleConfig
from pipeline.config.schema import Config
from pipeline.data.order.partition import BatchPlan
from pipeline.run.events import RunEvent
from pipeline.train.journal import clock_time, resolved_table, train_line
from tests.pipeline.fake_run import event, start_fields, train_fields


def plan(**changes: int | bool) -> BatchPlan:
    fields = {
        "num_samples": 1000,
        "global_batch_size": 96,
        "num_replicas": 2,
        "accumulation_steps": 3,
        "drop_last": True,
    }
    return BatchPlan(**fields | changes)  # type: ignore[arg-type]


def started(**changes: int) -> RunEvent:
    found: RunEvent = event("run", 0, **start_fields() | {"precision": "fp32"} | changes)
    return found


def test_the_table_shows_the_arithmetic() -> None:
    config = Config(
        epochs=5,
        optim=OptimConfig(name="adam", learning_rate=0.1),
        schedule=ScheduleConfig(name="cosine", warmup_ratio=0.3),
    )
    table = resolved_table(config, plan(), started(num_val_samples=200, target_steps=50))
    assert table == {
        "ranks": "2 on cpu, fp32",
        "global batch": "96 = 2 ranks × 16 local × 3 accumulated",
        "epochs": "5 of 10 steps, 50 in all",
        "samples": "1,000 train (40 left out in each, others every time), 200 val",
        "optimizer": "adam, learning rate 0.1 at its peak, cosine after 30% warm-up",
    }


def test_the_table_of_the_split_layout_counts_pairs() -> None:
    config = Config(model=ModelConfig(name="alexnet_2012", columns="split"))
    table = resolved_table(config, plan(), started(world_size=4))
    assert table["ranks"] == "4 on cpu, fp32, one column each"
    assert table["global batch"] == "96 = 2 replicas × 16 local × 3 accumulated"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"drop_last": False}, "(none left out, the last batch has 40)"),
        ({"num_samples": 960}, "(none left out)"),
    ],
)
def test_the_table_says_what_becomes_of_the_rest(
    changes: dict[str, int | bool], expected: str
) -> None:
    table = resolved_table(Config(), plan(**changes), started())
    assert expected in table["samples"]


def test_a_line_a_log_interval() -> None:
    line = train_line(event("train", 50, **train_fields(50)), target_steps=1000, eta_seconds=3661)
    assert line == (
        "step    50/1,000  epoch   5.00  loss 1.5000  top-1  45.0%  1,000 images/s  "
        "data wait 2.0%  ETA 1:01:01"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (59.6, "1:00"), (3599.4, "59:59"), (3600, "1:00:00"), (90061, "25:01:01")],
)
def test_times(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text
