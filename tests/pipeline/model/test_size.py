"""Sizes that are declared are those of the networks."""

from __future__ import annotations

import dataclasses
import io

import pytest
import torch

from pipeline.config.model import MODELS, ModelConfig, ModelName
from pipeline.config.optim import OptimConfig, OptimizerName
from pipeline.config.schema import Config
from pipeline.model.build import empty_model
from pipeline.optim.optimizer import build_optimizer


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
@pytest.mark.parametrize("name", MODELS)
def test_the_declared_number_of_parameters_is_the_network_s(
    name: ModelName, num_classes: int
) -> None:
    model = empty_model(ModelConfig(name=name), num_classes)
    found = sum(parameter.numel() for parameter in model.parameters())
    assert ModelConfig(name=name).num_parameters(num_classes) == found


@pytest.mark.parametrize(
    ("optimizer", "momentum"), [("sgd", 0.9), ("sgd", 0.0), ("adam", 0.9), ("adamw", 0.9)]
)
def test_a_checkpoint_has_the_weights_and_the_optimizer_s_state(
    optimizer: OptimizerName, momentum: float
) -> None:
    optim = OptimConfig(name=optimizer)
    if optimizer == "sgd":
        optim = dataclasses.replace(optim, momentum=momentum)
    config = Config(optim=optim)
    model = empty_model(config.model, 10).to_empty(device="cpu")
    made = build_optimizer(model, optim)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.step()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": made.state_dict()}, file)
    assert config.checkpoint_bytes(10) == pytest.approx(len(file.getvalue()), rel=0.01)
