"""What a config refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pipeline.config.augment import AugmentConfig
from pipeline.config.data import DataConfig, is_url
from pipeline.config.model import ModelConfig
from pipeline.config.optim import OptimConfig, ScheduleConfig
from pipeline.config.schema import (
    CheckpointConfig,
    Config,
    DistributedConfig,
    EvaluationConfig,
    MetricsConfig,
)


def config_with(group: Any, settings: dict[str, Any]) -> Config:
    made = group(**settings)
    names = [field.name for field in dataclasses.fields(Config) if field.type == group.__name__]
    return Config(**dict.fromkeys(names, made))


@pytest.mark.parametrize(
    ("group", "settings", "sentence"),
    [
        (DataConfig, {"decode_threads": 0}, "data.decode_threads is 0; expected at least 1"),
        (DataConfig, {"prefetch_batches": 0}, "data.prefetch_batches is 0; expected at least 1"),
        (
            DataConfig,
            {"shuffle_shards": 0},
            "data.shuffle_shards is 0; expected at least 1, or none",
        ),
        (DataConfig, {"cache_bytes": 0}, "data.cache_bytes is 0; expected at least 1, or none"),
        (DataConfig, {"fetch_attempts": 0}, "data.fetch_attempts is 0; expected at least 1"),
        (DataConfig, {"fetch_timeout_seconds": 0.0}, "data.fetch_timeout_seconds is 0.0; expected"),
        (
            DataConfig,
            {"shards": "s3://bucket/set"},
            "data.shards is the URL s3://bucket/set without data.cache_dir; expected a directory",
        ),
        (AugmentConfig, {"shift_pixels": -1}, "augment.shift_pixels is -1; expected 0 or more"),
        (AugmentConfig, {"crop_pixels": 0}, "augment.crop_pixels is 0; expected at least 1, or"),
        (AugmentConfig, {"color_noise": -0.1}, "augment.color_noise is -0.1; expected 0 or more"),
        (AugmentConfig, {"color_noise_until_epoch": -1.0}, "until_epoch is -1.0; expected 0 or"),
        (ModelConfig, {"dropout": 1.0}, "model.dropout is 1.0; expected 0 or more, below 1"),
        (OptimConfig, {"learning_rate": 0.0}, "optim.learning_rate is 0.0; expected above 0"),
        (OptimConfig, {"momentum": 1.0}, "optim.momentum is 1.0; expected 0 or more, below 1"),
        (OptimConfig, {"beta1": -0.1}, "optim.beta1 is -0.1; expected 0 or more, below 1"),
        (OptimConfig, {"beta2": 1.0}, "optim.beta2 is 1.0; expected 0 or more, below 1"),
        (OptimConfig, {"label_smoothing": 1.0}, "optim.label_smoothing is 1.0; expected"),
        (OptimConfig, {"epsilon": 0.0}, "optim.epsilon is 0.0; expected above 0"),
        (OptimConfig, {"weight_decay": -1.0}, "optim.weight_decay is -1.0; expected 0 or more"),
        (OptimConfig, {"clip_norm": 0.0}, "optim.clip_norm is 0.0; expected above 0, or none"),
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
        (
            MetricsConfig,
            {"exporter_address": ""},
            "metrics.exporter_address is empty; expected auto, 0.0.0.0 or an address",
        ),
        (
            MetricsConfig,
            {"exporter_certfile": "a.pem"},
            "exporter_keyfile is empty with metrics.exporter_certfile a.pem; expected both",
        ),
        (
            MetricsConfig,
            {"exporter_client_cafile": "a.pem"},
            "exporter_client_cafile is a.pem without metrics.exporter_certfile; expected a cert",
        ),
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
        config_with(group, settings)
    assert sentence in str(error.value)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("shards", "is_remote"),
    [
        ("", False),
        ("shards", False),
        ("/data/a:b", False),
        ("https://host/set", True),
        ("s3://bucket/set", True),
        ("file:///nfs/set", True),
        ("pipe:ssh host cat /data/{}", True),
    ],
)
def test_shards_are_a_directory_or_a_url(shards: str, is_remote: bool) -> None:
    config = DataConfig(shards=shards, cache_dir="cache", reader="resident")
    assert config.is_remote == is_remote
    assert is_url(shards) == is_remote


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"shards": "http://h/s", "cache_dir": "c"}, "data.reader is tar with data.shards http"),
        ({"shards": "there", "reader": "remote"}, "expected tar, beton or resident where shards"),
        ({"shards": "there", "reader": "beton"}, "data.beton is empty with data.reader beton"),
    ],
)
def test_readers_need_what_they_read(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        DataConfig(**changes)
