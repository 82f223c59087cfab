"""What a config refuses, how it is saved, and what may differ when a run is resumed."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import pytest

from pipeline.config import (
    AugmentConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    DistributedConfig,
    EvaluationConfig,
    MetricsConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    differences,
    flatten,
    from_json,
    to_json,
)
from pipeline.recipes import RECIPES

FIELDS = [name for name, _, _ in flatten(Config())]

OPERATIONAL = {
    "model.columns",
    "compile",
    "not_learning_after_samples",
    "data.shards",
    "data.decode_threads",
    "data.prefetch_batches",
    "checkpoint.every_epochs",
    "checkpoint.keep",
    "metrics.enabled",
    "metrics.publish_seconds",
    "metrics.exporter",
    "metrics.exporter_port",
    "metrics.exporter_address",
    "metrics.exporter_linger_seconds",
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
    ("group", "settings", "sentence"),
    [
        (DataConfig, {"decode_threads": 0}, "data.decode_threads is 0; expected at least 1"),
        (DataConfig, {"prefetch_batches": 0}, "data.prefetch_batches is 0; expected at least 1"),
        (AugmentConfig, {"shift_pixels": -1}, "augment.shift_pixels is -1; expected 0 or more"),
        (AugmentConfig, {"crop_pixels": 0}, "augment.crop_pixels is 0; expected at least 1, or"),
        (
            AugmentConfig,
            {"crop_pixels": 224, "shift_pixels": 2},
            "augment.shift_pixels is 2 beside augment.crop_pixels 224; expected one of the two",
        ),
        (AugmentConfig, {"crop_place": "middle"}, "crop_place is middle without augment.crop_pix"),
        (AugmentConfig, {"color_noise": -0.1}, "augment.color_noise is -0.1; expected 0 or more"),
        (AugmentConfig, {"color_noise_until_epoch": -1.0}, "until_epoch is -1.0; expected 0 or"),
        (
            ModelConfig,
            {"name": "alexnet_bn", "columns": "split"},
            "model.columns is split with model.name alexnet_bn; expected fused: only alexnet_2012",
        ),
        (ModelConfig, {"initialization": "caffe"}, "model.initialization is caffe with model.name"),
        (ModelConfig, {"response_norm": "none"}, "model.response_norm is none with model.name ale"),
        (ModelConfig, {"dropout_form": "original"}, "model.dropout_form is original with model.na"),
        (ModelConfig, {"dropout": 1.0}, "model.dropout is 1.0; expected 0 or more, below 1"),
        (OptimConfig, {"learning_rate": 0.0}, "optim.learning_rate is 0.0; expected above 0"),
        (OptimConfig, {"momentum": 1.0}, "optim.momentum is 1.0; expected 0 or more, below 1"),
        (OptimConfig, {"beta1": -0.1}, "optim.beta1 is -0.1; expected 0 or more, below 1"),
        (OptimConfig, {"beta2": 1.0}, "optim.beta2 is 1.0; expected 0 or more, below 1"),
        (OptimConfig, {"label_smoothing": 1.0}, "optim.label_smoothing is 1.0; expected"),
        (OptimConfig, {"epsilon": 0.0}, "optim.epsilon is 0.0; expected above 0"),
        (OptimConfig, {"weight_decay": -1.0}, "optim.weight_decay is -1.0; expected 0 or more"),
        (OptimConfig, {"clip_norm": 0.0}, "optim.clip_norm is 0.0; expected above 0, or none"),
        (
            OptimConfig,
            {"nesterov": True, "name": "adam"},
            "optim.nesterov is true with adam and momentum 0.9; expected sgd with a momentum",
        ),
        (OptimConfig, {"nesterov": True, "momentum": 0.0}, "optim.nesterov is true with sgd and"),
        (
            OptimConfig,
            {"momentum_form": "velocity", "nesterov": True},
            "optim.momentum_form is velocity with sgd and nesterov; expected velocity with sgd and",
        ),
        (
            OptimConfig,
            {"momentum_form": "velocity", "name": "adam"},
            "optim.momentum_form is velocity with adam; expected velocity with sgd",
        ),
        (OptimConfig, {"bias_learning_rate_ratio": 0.0}, "bias_learning_rate_ratio is 0.0; expec"),
        (ScheduleConfig, {"conv1_step_epochs": (3.0, 2.0)}, "conv1_step_epochs is (3.0, 2.0); exp"),
        (ScheduleConfig, {"conv1_freeze_epoch": -1.0}, "conv1_freeze_epoch is -1.0; expected 0"),
        (ScheduleConfig, {"num_stairs": 1}, "schedule.num_stairs is 1; expected at least 2"),
        (ScheduleConfig, {"name": "dexp"}, "schedule.final_ratio is 0.0 with schedule.name dexp"),
        (ScheduleConfig, {"warmup_ratio": -1.0}, "schedule.warmup_ratio is -1.0; expected 0 or"),
        (ScheduleConfig, {"warmup_ratio": 1.0}, "schedule.warmup_ratio is 1.0; expected 0 or"),
        (ScheduleConfig, {"final_ratio": 1.5}, "schedule.final_ratio is 1.5; expected 0 to 1"),
        (ScheduleConfig, {"factor": 1.0}, "schedule.factor is 1.0; expected between 0 and 1"),
        (ScheduleConfig, {"step_epochs": (3.0, 2.0)}, "step_epochs is (3.0, 2.0); expected epochs"),
        (ScheduleConfig, {"step_epochs": (3.0, 3.0)}, "step_epochs is (3.0, 3.0); expected epochs"),
        (ScheduleConfig, {"step_epochs": (-1.0,)}, "step_epochs is (-1.0,); expected epochs in"),
        (ScheduleConfig, {"name": "step"}, "schedule.step_epochs is empty with schedule.name step"),
        (ScheduleConfig, {"patience_evaluations": 0}, "patience_evaluations is 0; expected at"),
        (EvaluationConfig, {"every_epochs": -1.0}, "evaluation.every_epochs is -1.0; expected 0"),
        (EvaluationConfig, {"block_size": 0}, "evaluation.block_size is 0; expected at least 1"),
        (EvaluationConfig, {"views": 5}, "evaluation.views is 5; expected 1 or 10"),
        (
            Config,
            {"evaluation": EvaluationConfig(views=10)},
            "evaluation.views is 10 without augment.crop_pixels; expected 1, or a crop",
        ),
        (Config, {"not_learning_after_samples": 0}, "not_learning_after_samples is 0; expected at"),
        (CheckpointConfig, {"every_epochs": -1.0}, "checkpoint.every_epochs is -1.0; expected 0"),
        (CheckpointConfig, {"keep": 0}, "checkpoint.keep is 0; expected at least 1"),
        (MetricsConfig, {"publish_seconds": 0.0}, "metrics.publish_seconds is 0.0; expected above"),
        (
            MetricsConfig,
            {"exporter_port": 65536},
            "metrics.exporter_port is 65536; expected a port",
        ),
        (MetricsConfig, {"exporter_linger_seconds": -1.0}, "exporter_linger_seconds is -1.0; exp"),
        (DistributedConfig, {"timeout_seconds": 0.0}, "distributed.timeout_seconds is 0.0; expec"),
        (DistributedConfig, {"timeout_seconds": 1e300}, "is 1e+300; expected above 0, at most 1,0"),
        (DistributedConfig, {"save_timeout_seconds": 1e7}, "is 10000000.0; expected above 0, at m"),
        (MetricsConfig, {"publish_seconds": 1e300}, "publish_seconds is 1e+300; expected above 0"),
        (DistributedConfig, {"save_timeout_seconds": 0.0}, "distributed.save_timeout_seconds is 0"),
        (DistributedConfig, {"bucket_bytes": 0}, "distributed.bucket_bytes is 0; expected above 0"),
        (Config, {"epochs": 0.0}, "epochs is 0.0; expected above 0"),
        (Config, {"epochs": float("inf")}, "epochs is inf; expected above 0"),
        (Config, {"epochs": float("nan")}, "epochs is nan; expected above 0"),
        (Config, {"global_batch_size": 0}, "global_batch_size is 0; expected at least 1"),
        (Config, {"accumulation_steps": 0}, "accumulation_steps is 0; expected at least 1"),
        (Config, {"log_every_steps": 0}, "log_every_steps is 0; expected at least 1"),
        (Config, {"seed": -1}, "seed is -1; expected 0 or more, below 2**63"),
        (Config, {"seed": 1 << 63}, "expected 0 or more, below 2**63"),
    ],
)
def test_impossible_values_are_refused(group: Any, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match="expected") as error:
        group(**settings)
    assert sentence in str(error.value)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "config", [Config(), EVERYTHING_SET, *(make() for make in RECIPES.values())]
)
def test_a_saved_config_is_read_back(config: Config) -> None:
    saved = json.loads(json.dumps(to_json(config)))
    assert from_json(saved) == config
    assert differences(config, saved) == []


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
        ("", "optim", 5, "optim is 5, expected its fields"),
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
    if name in OPERATIONAL:
        assert found == []
    else:
        (sentence,) = found
        assert sentence.startswith(f"{name}: was ['another', ")


def test_every_operational_field_is_a_field() -> None:
    assert set(FIELDS) > OPERATIONAL


def test_a_difference_says_both_values() -> None:
    saved = to_json(Config(epochs=20, optim=OptimConfig(learning_rate=0.5)))
    assert differences(Config(epochs=10), saved) == [
        "optim.learning_rate: was 0.5, is 0.01",
        "epochs: was 20, is 10",
    ]


def test_a_field_that_was_not_there_differs() -> None:
    saved = to_json(Config())
    del saved["augment"]["flip"]
    assert differences(Config(), saved) == ["augment.flip: was None, is none"]
    saved = to_json(Config())
    saved["model"]["groups"] = 2
    assert differences(Config(), saved) == ["model.groups: was 2, is None"]
