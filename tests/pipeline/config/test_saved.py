"""How a config is saved, and what may differ when a run is resumed."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from pipeline.config.augment import AugmentConfig
from pipeline.config.data import DataConfig
from pipeline.config.optim import OptimConfig, ScheduleConfig
from pipeline.config.recipes import RECIPES
from pipeline.config.saved import differences, from_json, to_json
from pipeline.config.schema import FIELDS, Config, idle_fields, values_of

OPERATIONAL = {
    "model.columns",
    "distributed.compare_replicas",
    "distributed.warm_restarts",
    "accumulation_steps",
    "compile",
    "not_learning_after_samples",
    "data.shards",
    "data.reader",
    "data.beton",
    "data.max_corrupt_ratio",
    "data.decode_threads",
    "data.prefetch_batches",
    "data.cache_dir",
    "data.cache_bytes",
    "data.fetch_timeout_seconds",
    "data.fetch_attempts",
    "checkpoint.every_epochs",
    "checkpoint.keep",
    "checkpoint.background",
    "metrics.enabled",
    "metrics.publish_seconds",
    "metrics.exporter",
    "metrics.exporter_port",
    "metrics.exporter_address",
    "metrics.exporter_certfile",
    "metrics.exporter_keyfile",
    "metrics.exporter_client_cafile",
    "distributed.device",
    "distributed.timeout_seconds",
    "distributed.save_timeout_seconds",
    "log_every_steps",
}
"""How a run is carried out. What is not listed here is part of what is computed."""

EVERYTHING_SET = Config(
    optim=OptimConfig(name="adamw", clip_norm=1.5),
    schedule=ScheduleConfig(name="step", step_epochs=(3.0, 6.5), warmup_ratio=0.05),
    data=DataConfig(shards="/data/ü", drop_last=False),
)


def changed(saved: dict[str, Any], name: str) -> dict[str, Any]:
    """A saved config with another value in one field."""
    other = copy.deepcopy(saved)
    *groups, last = name.split(".")
    inner = other
    for group in groups:
        inner = inner[group]
    inner[last] = ["another", inner[last]]
    return other


@pytest.mark.parametrize(
    "config", [Config(), EVERYTHING_SET, *(make() for make in RECIPES.values())]
)
def test_a_saved_config_is_read_back(config: Config) -> None:
    saved = json.loads(json.dumps(to_json(config)))
    assert from_json(saved) == config
    assert differences(config, saved) == []


def test_a_group_without_its_fields_is_not_read() -> None:
    with pytest.raises(ValueError, match="saved by another version: optim is unknown here"):
        from_json(to_json(Config()) | {"optim": 5})


@pytest.mark.parametrize("group", ["", "optim"])
def test_a_config_with_other_fields_is_not_read(group: str) -> None:
    saved = to_json(Config())
    inner = saved[group] if group else saved
    inner["sped_up"] = inner.pop(next(iter(inner)))
    with pytest.raises(ValueError, match=r"saved by another version: .*sped_up"):
        from_json(saved)


@pytest.mark.parametrize(
    ("group", "name", "value", "expected"),
    [
        ("", "epochs", "ten", "epochs is 'ten', expected float"),
        ("", "epochs", None, "epochs is None, expected float"),
        ("", "seed", 1.0, "seed is 1.0, expected int"),
        ("", "seed", True, "seed is True, expected int"),
        ("data", "drop_last", 1, "data.drop_last is 1, expected bool"),
        ("data", "shards", [], "data.shards is [], expected str"),
        ("optim", "clip_norm", "1", "optim.clip_norm is '1', expected float | None"),
        ("optim", "name", ["sgd"], "optim.name is ['sgd'], expected Literal['sgd', 'adam'"),
        ("schedule", "step_epochs", 3, "schedule.step_epochs is 3, expected tuple[float, ...]"),
        ("schedule", "step_epochs", ["3"], "schedule.step_epochs is ['3'], expected tuple"),
    ],
)
def test_a_saved_value_of_another_type_is_named(
    group: str, name: str, value: object, expected: str
) -> None:
    saved = to_json(Config())
    (saved[group] if group else saved)[name] = value
    with pytest.raises(ValueError, match=r"is damaged: .*; restore it from a copy") as error:
        from_json(saved)
    assert expected in str(error.value)


@pytest.mark.parametrize("name", FIELDS)
def test_a_resumed_run_may_differ_in_how_it_is_carried_out_only(name: str) -> None:
    config = EVERYTHING_SET
    found = differences(config, changed(to_json(config), name))
    if name in OPERATIONAL or name in idle_fields(values_of(config)):
        assert found == []
    else:
        (sentence,) = found
        assert sentence.startswith(f"{name}: was ['another', ")


def test_every_operational_field_is_a_field() -> None:
    assert set(FIELDS) > OPERATIONAL


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("schedule", "biases", "constant"),  # an older version kept it
        ("optim", "beta1", 0.5),
        ("augment", "color_noise_until_epoch", 67.0),
    ],
)
def test_what_has_no_effect_is_read_as_its_default_and_is_no_difference(
    group: str, name: str, value: object
) -> None:
    saved = to_json(Config())
    saved[group][name] = value
    assert from_json(saved) == Config()
    assert differences(Config(), saved) == []


def test_a_field_that_was_removed_is_passed_over() -> None:
    saved = to_json(Config())
    saved["metrics"]["exporter_linger_seconds"] = 5.0
    assert from_json(saved) == Config()
    assert differences(Config(), saved) == []


def test_what_had_an_effect_differs_by_what_took_it() -> None:
    was = Config(schedule=ScheduleConfig(name="step", step_epochs=(3.0,)))
    assert differences(Config(), to_json(was)) == ["schedule.name: was step, is constant"]
    assert differences(was, to_json(Config())) == [
        "schedule.name: was constant, is step",
        "schedule.step_epochs: was [], is [3.0]",
    ]


def test_a_difference_says_both_values() -> None:
    saved = to_json(Config(epochs=20, optim=OptimConfig(learning_rate=0.5)))
    assert differences(Config(epochs=10), saved) == [
        "optim.learning_rate: was 0.5, is 0.01",
        "epochs: was 20, is 10",
    ]


def test_a_field_that_was_not_there_had_its_default() -> None:
    """As of a run that was begun before the field was added."""
    saved = to_json(Config())
    del saved["augment"]["flip"]
    assert differences(Config(), saved) == []
    assert from_json(saved) == Config()
    flipped = Config(augment=AugmentConfig(flip="random"))
    assert differences(flipped, saved) == ["augment.flip: was none, is random"]


def test_a_field_that_is_not_there_any_more_differs() -> None:
    saved = to_json(Config())
    saved["model"]["groups"] = 2
    assert differences(Config(), saved) == ["model.groups: was 2, is none"]
