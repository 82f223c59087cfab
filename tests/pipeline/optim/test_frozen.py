"""Layers that are frozen do not move, and early layers move by their share of the rate."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch

from pipeline.config.init import InitConfig
from pipeline.config.model import ModelConfig
from pipeline.config.optim import OptimConfig
from pipeline.config.schema import Config
from pipeline.model.build import build_model
from pipeline.model.network import Network
from pipeline.optim.optimizer import build_optimizer, set_rates
from pipeline.optim.replica import Replica
from pipeline.optim.schedule import Rates
from pipeline.ranks.world import World
from pipeline.train.batch_norm import least_values
from tests.pipeline.rank_jobs import call_on_ranks
from tests.pipeline.worlds import SINGLE, fused

MODEL = ModelConfig(name="alexnet_cifar", dropout=0.0)
SGD = OptimConfig(name="sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.1, clip_norm=1.0)
ADAMW = OptimConfig(name="adamw", learning_rate=0.01, weight_decay=0.1)
KEYS = torch.arange(12)
IMAGES = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(1))
LABELS = KEYS % 4

Weights = dict[str, torch.Tensor]


def network(*, is_frozen: bool = True) -> Network:
    """With moments that no batch of `IMAGES` has."""
    torch.manual_seed(0)
    model = build_model(MODEL, 4, (32, 32))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-1, 1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.1, 3)
    model.freeze("conv" if is_frozen else "none")
    return model


def train(world: World, optim: OptimConfig, precision: Any) -> tuple[Weights, Weights]:
    """Weights before and after three updates, with what a skipped one puts back."""
    config = Config(
        model=dataclasses.replace(MODEL, batch_norm_momentum=0.01),
        init=InitConfig(weights="/given", freeze="conv"),
        optim=optim,
        precision=precision,
    )
    model = network()
    before = copy.deepcopy(model.state_dict())
    replica = Replica(model, config, world, fused(world))
    part = slice(world.rank, None, world.size)
    replica.warm_up(IMAGES[part], KEYS[part], LABELS[part])
    for _ in range(3):
        replica.add_gradients(
            IMAGES[part], KEYS[part], LABELS[part], step_samples=len(IMAGES), is_last=True
        )
        replica.set_rates(Rates(**dict.fromkeys(Rates.__slots__, optim.learning_rate)))
        replica.update()
        model.eval()
        model.train()
    return before, copy.deepcopy(replica.model.state_dict())


def assert_only_dense_layers_moved(before: Weights, after: Weights) -> None:
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith("classifier.")}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optim", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_frozen_layers_keep_their_bits(optim: OptimConfig, precision: str) -> None:
    """With momentum and decay, and the moments of BatchNorm too."""
    assert_only_dense_layers_moved(*train(SINGLE, optim, precision))


@pytest.mark.slow
def test_frozen_layers_keep_their_bits_on_three_ranks() -> None:
    """Where a mean of equal moments would be another number."""
    ranks = call_on_ranks(3, train, SGD, "fp32")
    for before, after in ranks:
        assert_only_dense_layers_moved(before, after)
        assert all(torch.equal(after[name], ranks[0][1][name]) for name in after)


def test_frozen_batch_norm_computes_in_training_what_it_does_in_evaluation() -> None:
    model = network()
    in_training = model.train()(IMAGES, KEYS)
    assert torch.equal(in_training, model.eval()(IMAGES))
    other = network(is_frozen=False)
    assert not torch.equal(other.train()(IMAGES, KEYS), in_training)
    assert least_values(network(), (32, 32)) is None, "one image is a batch"
    assert least_values(other, (32, 32)) == 1


@pytest.mark.parametrize("form", ["gradient", "velocity"])
def test_early_layers_have_their_share_of_the_rate(form: Any) -> None:
    """Against two networks that have one rate each."""
    optim = dataclasses.replace(SGD, momentum_form=form, clip_norm=None)
    updated = {}
    for rate, ratio in ((0.1, 0.25), (0.1, 1.0), (0.025, 1.0)):
        model = network(is_frozen=False)
        optimizer = build_optimizer(model, optim, ratio)
        for factor in (1.0, 0.5, 0.1):
            rates = dict.fromkeys(Rates.__slots__, rate * factor)
            set_rates(optimizer, Rates(**rates), optim)
            for number, parameter in enumerate(model.parameters()):
                generator = torch.Generator().manual_seed(number)
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        updated[rate, ratio] = dict(model.named_parameters())
    for name, found in updated[0.1, 0.25].items():
        is_last = name.startswith("classifier.6.")
        torch.testing.assert_close(found, updated[0.1 if is_last else 0.025, 1.0][name])
