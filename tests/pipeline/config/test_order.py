"""No two waits of a job contradict each other, and where they would, it is said."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.kubernetes_spec import TrainPods
from launch.monitoring.alerts import ALERTS
from launch.spec import TrainSpec, seconds_of
from pipeline.config.data import DataConfig
from pipeline.config.order import NAMES, ORDER, Measured, Surroundings, WaitName, check_waits, waits
from pipeline.config.recipes import RECIPES, recipe_config
from pipeline.config.schema import CheckpointConfig, Config, DistributedConfig
from pipeline.config.timeouts import KEPT_SECONDS, SHUTDOWN_SECONDS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "timeouts.md"

SLURM = TrainSpec()
IN_SLURM = Surroundings(
    shutdown=SLURM.shutdown_seconds,
    grace=SLURM.signal_lead_seconds,
    kill_wait=30.0,
    time_limit=seconds_of(SLURM.time_limit),
    is_requeued=True,
)
POD = TrainPods(container="image", claims=("c:/c",))
IN_KUBERNETES = Surroundings(shutdown=POD.shutdown_seconds, grace=POD.signal_lead_seconds)
HERE = Surroundings(shutdown=SHUTDOWN_SECONDS)
WAITING = Config(checkpoint=CheckpointConfig(background=False))
WARM = Config(distributed=DistributedConfig(warm_restarts=1))
SLOWLY = dataclasses.replace(recipe_config("alexnet_2012"), checkpoint=WAITING.checkpoint)
AT_URL = DataConfig(shards="http://host/shards", cache_dir="/tmp/cache", reader="remote")
OF_ALERTS = ("silence", "alert", "stall_alert", "save_alert")

LIMITS = st.floats(0.05, 1e6)


def remote(recipe: str = "alexnet_2012", **limits: Any) -> Config:
    data = dataclasses.replace(AT_URL, **limits)
    return dataclasses.replace(recipe_config(recipe), data=data)


def broken(known: Mapping[WaitName, float], *, with_alerts: bool) -> list[tuple[str, ...]]:
    return [
        (*rule.parts, rule.whole)
        for rule in ORDER
        if {*rule.parts, rule.whole} <= known.keys()
        and (with_alerts or not set(rule.parts) & set(OF_ALERTS))
        and sum(known[name] for name in rule.parts) > known[rule.whole]
    ]


def test_the_page_has_every_wait_and_every_rule() -> None:
    known = waits(remote(), IN_SLURM)
    rows = [
        f"| `{name}` | {text} | {f'{known[name]:,.5g}' if name in known else '–'} |"
        for name, text in NAMES.items()
    ]
    rows += [
        f"| {' + '.join(f'`{name}`' for name in rule.parts)} | `{rule.whole}` | {rule.reason} | "
        f"{rule.strictness} |"
        for rule in ORDER
    ]
    found = re.findall(r"^\| .*`.*$", PAGE.read_text(), re.MULTILINE)
    assert found == rows, "the tables of docs/timeouts.md should be:\n" + "\n".join(rows)


@pytest.mark.parametrize("around", [IN_SLURM, IN_KUBERNETES, HERE], ids=["slurm", "pods", "here"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_defaults_contradict_nothing(recipe: str, around: Surroundings) -> None:
    config = remote(recipe)
    assert broken(waits(config, around), with_alerts=True) == []
    assert check_waits(config, around) == []


@given(stall=LIMITS, save_stall=LIMITS)
def test_our_own_numbers_fit_whatever_the_limits(stall: float, save_stall: float) -> None:
    limits = DistributedConfig(timeout_seconds=stall, save_timeout_seconds=save_stall)
    known = waits(Config(distributed=limits))
    del known["save"], known["stop"]
    assert broken(known, with_alerts=False) == []


@given(lead=st.integers(60, 10**6), is_requeued=st.booleans())
def test_torchrun_s_share_of_the_lead_leaves_what_comes_after_it(
    lead: int, is_requeued: bool
) -> None:
    spec = TrainSpec(signal_lead_seconds=lead, requeue=is_requeued, time_limit="100-00")
    if lead >= 86400 * 100:
        return
    assert 30 <= spec.shutdown_seconds < lead
    around = Surroundings(shutdown=spec.shutdown_seconds, grace=lead, is_requeued=is_requeued)
    has_room = lead >= (130 if is_requeued else 60)
    assert bool(check_waits(Config(), around)) is not has_room


@pytest.mark.parametrize(
    ("config", "around", "measured", "sentence"),
    [
        (
            Config(),
            HERE,
            Measured(save=1801.0),
            r"1801 s \(a save.* fit into 1800 s \(distributed\.",
        ),
        (
            Config(),
            HERE,
            Measured(save=270.0),
            r" \+ 270 s \(a save.* = 270\.5 s .* 270 s \(TORCH_",
        ),
        (Config(), HERE, Measured(step=30.0, save=241.0), r"30\.5 s \(from a signal.* = 271\.5 s"),
        (remote(fetch_timeout_seconds=301.0), HERE, Measured(), r"301 s \(data\.fetch_timeout_sec"),
        (
            *(Config(), Surroundings(grace=300.0, time_limit=330.0), Measured(start=60.0)),
            r"60 s \(a start.* \+ 300 s \(--signal-lead.* = 360\.5 s .* 330 s \(--time",
        ),
    ],
    ids=["save", "shutdown", "step", "fetch", "time limit"],
)
def test_what_surely_loses_work_is_refused_with_the_arithmetic(
    config: Config, around: Surroundings, measured: Measured, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        check_waits(config, around, measured)
    assert "; " in str(error.value), "it says what to do"


@pytest.mark.parametrize(
    ("config", "around", "measured", "sentence"),
    [
        (Config(), Surroundings(), Measured(step=300.5), "take a step for a hang"),
        (remote(fetch_attempts=10), HERE, Measured(), "before the last attempt"),
        (WAITING, HERE, Measured(save=200.0, evaluation=100.0), "as an evaluation begins"),
        (WARM, Surroundings(), Measured(evaluation=61.0), "another rank is lost in an evaluation"),
        (WAITING, Surroundings(kill_wait=30.0), Measured(save=40.0), "after scancel"),
        (Config(), HERE, Measured(save=200.0), "200 s .* 200 s .* = 400.5 s .* 270 s .*begins"),
        (SLOWLY, Surroundings(shutdown=10.0), Measured(), "ranks that save"),
        (
            *(Config(), Surroundings(shutdown=250.0, grace=300.0, is_requeued=True), Measured()),
            "250 s .* 20 s .* 10 s .* 35 s .* = 315 s do not fit into 300 s",
        ),
    ],
    ids=["step", "fetch", "evaluation", "warm", "KillWait", "in flight", "assumed", "requeue"],
)
def test_what_may_lose_work_is_a_warning(
    config: Config, around: Surroundings, measured: Measured, sentence: str
) -> None:
    (warning,) = check_waits(config, around, measured)
    assert re.search(sentence, warning), warning


@given(save=st.floats(0.0, 1e4), shutdown=st.floats(1.0, 1e4), step=st.floats(0.001, 299.0))
def test_a_save_is_refused_exactly_where_it_does_not_fit(
    save: float, shutdown: float, step: float
) -> None:
    fits = save + step + 0.5 <= shutdown and save <= 1800
    try:
        check_waits(Config(), Surroundings(shutdown=shutdown), Measured(save=save, step=step))
    except ValueError:
        assert not fits
    else:
        assert fits


def test_alerts_of_a_run_that_has_ended_ring_while_its_end_is_served() -> None:
    """With two scrapes, by the default of Prometheus' configuration."""
    ended = [alert for alert in ALERTS if re.search(r'outcome="(failed|killed)"', alert.condition)]
    holds = [alert.hold for alert in ended]
    assert holds
    for hold in holds:
        seconds = int(hold[:-1]) * {"s": 1, "m": 60}[hold[-1]]
        assert seconds + 2 * 15 <= KEPT_SECONDS
