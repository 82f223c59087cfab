"""Which fields have an effect: what is declared is what the code does."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from data_prep.shard_set.manifest import Statistics
from pipeline.config.augment import IMAGE_SIZES, AugmentConfig
from pipeline.config.command_line import with_values
from pipeline.config.data import DataConfig
from pipeline.config.marks import needs_of, why_idle
from pipeline.config.model import Initialization, ModelConfig, ModelName
from pipeline.config.optim import OptimConfig, ScheduleConfig
from pipeline.config.recipes import recipe_config
from pipeline.config.schema import FIELDS, Config, MetricsConfig, values_of
from pipeline.data.augment.crop_policy import training_crop_policy
from pipeline.data.augment.normalize import Normalizer
from pipeline.data.augment.preprocess import Augmenter
from pipeline.evaluate.shards import _with_shards
from pipeline.model import alexnet
from pipeline.model.build import _build
from pipeline.model.columns import BOTH
from pipeline.model.network import Network
from pipeline.optim.optimizer import build_optimizer, set_rates
from pipeline.optim.schedule import Position, Rates, learning_rates


def test_conditions_are_on_fields_and_on_values_that_these_can_have() -> None:
    conditions = [
        condition
        for entry in FIELDS.values()
        for alternatives in needs_of(entry)
        for condition in alternatives
    ]
    assert len(conditions) > 20
    for condition in conditions:
        assert condition.name in FIELDS or condition.name == IMAGE_SIZES
        other = FIELDS.get(condition.name)
        if other is not None and other.choices:
            assert set(condition.expected.split(" or ")) <= set(other.choices)


@pytest.mark.parametrize(
    ("group", "settings", "sentence"),
    [
        (
            "schedule",
            ScheduleConfig(step_epochs=(3.0,)),
            "schedule.step_epochs is 3.0; expected ''",
        ),
        (
            "optim",
            OptimConfig(beta1=0.5),
            "optim.beta1 is 0.5; expected 0.9: it has an effect only",
        ),
        (
            "model",
            ModelConfig(columns="split"),
            "expected fused: it has an effect only with model.",
        ),
        (
            "augment",
            AugmentConfig(crop_pixels=9, shift_pixels=2),
            "augment.shift_pixels is 2; expec",
        ),
        (
            "metrics",
            MetricsConfig(enabled=False, exporter_port=1),
            "metrics.exporter_port is 1; exp",
        ),
    ],
)
def test_a_config_holds_no_value_without_effect(group: str, settings: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match="it has an effect only with") as error:
        Config(**{group: settings})
    assert sentence in str(error.value)


def test_a_condition_on_what_is_not_known_yet_holds() -> None:
    values = values_of(Config())
    name = "augment.evaluation_pixels"
    assert why_idle(name, values, FIELDS) is None
    assert why_idle(name, values | {IMAGE_SIZES: "of several sizes"}, FIELDS) is None
    assert why_idle(name, values | {IMAGE_SIZES: "of one size"}, FIELDS) == (
        "it needs images of several sizes, and images is of one size"
    )


Trace = Callable[[Config], object]

OTHER_VALUES: dict[str, Any] = {
    "schedule.warmup_ratio": 0.25,
    "schedule.final_ratio": 0.5,
    "schedule.num_stairs": 2,
    "schedule.step_epochs": (1.0,),
    "schedule.factor": 0.5,
    "schedule.patience_evaluations": 1,
    "schedule.biases": "constant",
    "schedule.conv1_step_epochs": (3.0,),
    "schedule.conv1_freeze_epoch": 2.0,
    "optim.momentum": 0.5,
    "optim.nesterov": True,
    "optim.momentum_form": "velocity",
    "optim.beta1": 0.5,
    "optim.beta2": 0.5,
    "optim.epsilon": 0.5,
    "model.initialization": "paper",
    "model.response_norm": "none",
    "model.dropout": 0.25,
    "model.dropout_form": "original",
    "model.batch_norm_momentum": 0.5,
    "augment.shift_pixels": 2,
    "augment.crop_place": "middle",
    "augment.crop_min_area": 0.5,
    "augment.color_components": "shards",
    "augment.color_noise_until_epoch": 0.0,
}
"""Values that make a difference wherever the field has an effect."""

CHOICES: dict[str, tuple[dict[str, Any], ...]] = {
    "schedule": (
        *({"schedule.name": name} for name in ("constant", "cosine", "linear", "plateau")),
        {"schedule.name": "step", "schedule.step_epochs": (2.0,)},
        {"schedule.name": "dexp", "schedule.final_ratio": 0.1},
        {"schedule.name": "cosine", "schedule.conv1_step_epochs": (2.0,)},
    ),
    "optim": (
        *({"optim.name": name} for name in ("sgd", "adam", "adamw")),
        {"optim.name": "sgd", "optim.momentum": 0.0},
        {"optim.name": "sgd", "optim.nesterov": True},
    ),
    "augment": (
        {},
        {"augment.crop_pixels": 5},
        {"augment.crop_pixels": 5, "augment.crop_place": "random_resized"},
        {"augment.color_noise": 0.2},
    ),
}


def rates_of_a_run(config: Config) -> list[Rates]:
    return rates_of(config.optim, config.schedule)


def rates_of(optim: OptimConfig, schedule: ScheduleConfig) -> list[Rates]:
    """Of each update of 4 epochs of 5 steps; the evaluations find nothing new."""
    return [
        learning_rates(
            optim,
            schedule,
            Position(
                updates=updates,
                steps_per_epoch=5,
                target_steps=20,
                losses=[1.0] * (updates // 2),
            ),
        )
        for updates in range(20)
    ]


class OneLayer(Network):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 3)

    @property
    def first_convolution(self) -> nn.Conv2d:
        return self.layer


def weights_after_updates(config: Config) -> list[float]:
    """Of a network of which the same gradients come three times, at falling rates."""
    torch.manual_seed(0)
    network = OneLayer()
    optimizer = build_optimizer(network, config.optim)
    for number, rate in enumerate((0.1, 0.05, 0.01)):
        set_rates(optimizer, Rates(**dict.fromkeys(Rates.__slots__, rate)), config.optim)
        for parameter in network.parameters():
            torch.manual_seed(number)
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return [float(parameter.detach().sum()) for parameter in network.parameters()]


def crops_of_training(config: Config) -> list[object]:
    samples = np.arange(6)
    heights = np.full(6, 9)
    boxes = training_crop_policy(config.augment, (9, 9), 0).boxes(samples, 0, heights, heights)
    statistics = Statistics(
        num_images=1,
        mean=(1.0, 2.0, 3.0),
        std=(1.0, 1.0, 1.0),
        pca_stds=(1.0, 2.0, 3.0),
        pca_vectors=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    )
    normalizer = Normalizer(np.zeros(3), np.ones(3), torch.device("cpu"))
    images = torch.arange(6 * 9 * 9 * 3, dtype=torch.int64).remainder(251).to(torch.uint8)
    inputs = Augmenter(config.augment, 0, statistics, normalizer)(
        images.view(6, 9, 9, 3), samples, 0
    )
    return [boxes.as_rows().tolist(), inputs.tolist()]


CASES: list[tuple[str, dict[str, Any], Trace]] = [
    (name, choice, trace)
    for group, trace in (
        ("schedule", rates_of_a_run),
        ("optim", weights_after_updates),
        ("augment", crops_of_training),
    )
    for choice, name in itertools.product(CHOICES[group], OTHER_VALUES)
    if name.startswith(f"{group}.") and name not in choice
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "choice", "trace"), CASES, ids=[f"{name} {choice}" for name, choice, _ in CASES]
)
def test_a_field_makes_a_difference_where_it_may_be_given(
    name: str, choice: dict[str, Any], trace: Trace
) -> None:
    """And nowhere else, as far as the code can be asked for what a config refuses."""
    config = with_values(Config(), choice)
    values = values_of(config)
    before = trace(config)
    if why_idle(name, values, FIELDS) is None:
        assert trace(with_values(config, {name: OTHER_VALUES[name]})) != before
        return
    with pytest.raises(ValueError, match=f"--{name} has no effect"):
        with_values(config, {name: OTHER_VALUES[name]})
    if trace is rates_of_a_run:
        changes: dict[str, Any] = {name.removeprefix("schedule."): OTHER_VALUES[name]}
        schedule = dataclasses.replace(config.schedule, **changes)
        assert rates_of(config.optim, schedule) == before


def test_biases_have_a_drop_of_their_own_beside_a_rate_that_stays() -> None:
    steady = with_values(Config(), {"schedule.name": "constant"})
    assert rates_of_a_run(with_values(steady, {"schedule.biases": "halfway"})) != (
        rates_of_a_run(steady)
    )
    recipe = with_values(recipe_config("alexnet_2012"), {"schedule.name": "constant"})
    assert recipe.schedule.biases == "follow", "what its own value comes to here"


@pytest.mark.parametrize("network", get_args(ModelName))
def test_the_networks_that_take_a_field_are_those_that_look_at_it(network: ModelName) -> None:
    """Of fields of single networks: what is built with another value is another network."""
    names = ("initialization", "response_norm", "dropout_form", "batch_norm_momentum")
    before = seen_of(ModelConfig(name=network))
    for name in names:
        changes: dict[str, Any] = {name: OTHER_VALUES[f"model.{name}"]}
        after = seen_of(ModelConfig(name=network, **changes))
        may_be_given = (
            why_idle(f"model.{name}", values_of(Config(model=ModelConfig(name=network))), FIELDS)
            is None
        )
        assert (after != before) is may_be_given, name


def test_frozen_convolutions_leave_their_rates_without_effect() -> None:
    """And given weights the distribution of fresh ones; what the recipe has of them falls back."""
    recipe = recipe_config("alexnet_2012")
    given = with_values(recipe, {"init.weights": "/w"})
    assert given.schedule == recipe.schedule
    frozen = with_values(recipe, {"init.weights": "/w", "init.freeze": "conv"})
    assert frozen.schedule.conv1_freeze_epoch is None
    assert frozen.schedule.conv1_step_epochs == ()
    refused = {
        "schedule.conv1_freeze_epoch": (frozen, "init.weights left out or init.freeze none"),
        "model.initialization": (given, "init.weights left out, and init.weights is /w"),
        "init.freeze": (recipe, "init.weights, and init.weights is ''"),
    }
    for name, (config, need) in refused.items():
        value = OTHER_VALUES.get(name, "conv")
        with pytest.raises(ValueError, match=rf"--{name} has no effect: it needs {need}; leave"):
            with_values(config, {name: value})


@pytest.mark.parametrize("form", ["paper", "caffe"])
def test_a_new_last_layer_is_the_same_whatever_the_others_would_be(form: Initialization) -> None:
    def last_layer(config: ModelConfig) -> torch.Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(alexnet, "_KERNELS", (4, 4, 4, 4, 4))
            patch.setattr(alexnet, "_UNITS", 4)
            torch.manual_seed(0)
            weights: torch.Tensor = _build(config, 3, BOTH).state_dict()["fc8.weight"]
            return weights

    config = ModelConfig(name="alexnet_2012")
    assert torch.equal(
        last_layer(config), last_layer(dataclasses.replace(config, initialization=form))
    )


def seen_of(config: ModelConfig) -> list[object]:
    """What tells networks apart: their modules' settings and the sizes of their weights.

    On torch's meta device, where no weight takes memory; what fills them is traced by name.
    """
    calls: list[object] = []
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        for fill in ("normal_", "constant_", "xavier_uniform_", "zeros_"):
            patch.setattr(
                torch.nn.init, fill, lambda _, *values, **named: calls.append((values, named))
            )
        network = _build(config, 10, BOTH)
    settings = [
        {name: repr(value) for name, value in vars(module).items() if not isinstance(value, dict)}
        for module in network.modules()
    ]
    return [str(network), settings, calls]


def test_an_option_of_evaluation_without_effect_is_refused() -> None:
    """And what the run had of a shard set at a URL is left behind with it."""
    url: dict[str, Any] = {"data.shards": "http://h/s", "data.reader": "remote"}
    config = with_values(Config(), url | {"data.cache_dir": "/c", "data.fetch_attempts": 2})
    moved = _with_shards(config, "/here", None)
    assert moved.data == DataConfig(shards="/here")
    with pytest.raises(
        ValueError, match=r"\A--cache-dir has no effect: it needs data.shards at a "
    ):
        _with_shards(config, "/here", "/c")
    assert _with_shards(config, None, "/d").data.cache_dir == "/d"
    with pytest.raises(
        ValueError, match=r"\A--shards is the URL http://h/s without --cache-dir; exp"
    ):
        _with_shards(Config(), "http://h/s", None)
