"""Optimizers and the loss against NumPy in float64."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from pipeline.config.optim import OptimConfig
from pipeline.model.network import Network
from pipeline.optim.optimizer import (
    build_optimizer,
    cross_entropy_sum,
    load_optimizer_state,
    optimizer_state,
    set_rates,
)
from pipeline.optim.schedule import Rates

Array = npt.NDArray[np.float64]

NUM_STEPS = 5
LEARNING_RATE = 0.1
DECAY = 0.01
RATES = [field.name for field in dataclasses.fields(Rates)]


class Parameters(Network):
    """Whatever is put into it; the first layer is not one of it."""

    @property
    def first_convolution(self) -> nn.Conv2d:
        return nn.Conv2d(1, 1, 1)


class Layers(Network):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.dense = nn.Linear(4, 2)

    @property
    def first_convolution(self) -> nn.Conv2d:
        return self.convolution


def make_gradients(shape: tuple[int, ...]) -> list[Array]:
    random = np.random.default_rng(len(shape))
    return [random.normal(size=shape) for _ in range(NUM_STEPS)]


def train(config: OptimConfig, start: Array) -> Iterator[Array]:
    """The parameter after each step."""
    model = Parameters()
    model.register_parameter("parameter", nn.Parameter(torch.tensor(start, dtype=torch.float32)))
    (parameter,) = model.parameters()
    optimizer = build_optimizer(model, config)
    for gradient in make_gradients(start.shape):
        parameter.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
        yield parameter.detach().numpy().astype(np.float64)


def sgd(start: Array, decay: float, nesterov: bool) -> Iterator[Array]:
    """Sutskever et al. 2013, in the form that multiplies by the rate last."""
    velocity = np.zeros_like(start)
    for gradient in make_gradients(start.shape):
        gradient = gradient + decay * start
        velocity = 0.9 * velocity + gradient
        start = start - LEARNING_RATE * (gradient + 0.9 * velocity if nesterov else velocity)
        yield start


def adam(start: Array, decay: float, decoupled: bool) -> Iterator[Array]:
    """Kingma and Ba, algorithm 1; Loshchilov and Hutter, algorithm 2."""
    first, second = np.zeros_like(start), np.zeros_like(start)
    for step, gradient in enumerate(make_gradients(start.shape), start=1):
        if decoupled:
            start = start * (1 - LEARNING_RATE * decay)
        else:
            gradient = gradient + decay * start
        first = 0.8 * first + 0.2 * gradient
        second = 0.95 * second + 0.05 * gradient**2
        root = np.sqrt(second / (1 - 0.95**step))
        start = start - LEARNING_RATE * first / (1 - 0.8**step) / (root + 1e-3)
        yield start


def assert_same(found: Iterator[Array], exact: Iterator[Array]) -> None:
    for one, other in zip(found, exact, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("shape", "decay"), [((3, 4), DECAY), ((4,), 0.0), ((), 0.0)])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_decays_weights_and_nothing_else(
    shape: tuple[int, ...], decay: float, nesterov: bool
) -> None:
    config = OptimConfig(
        name="sgd", learning_rate=LEARNING_RATE, weight_decay=DECAY, nesterov=nesterov
    )
    start = np.full(shape, 2.0)
    assert_same(train(config, start), sgd(start, decay, nesterov))


@pytest.mark.parametrize(("shape", "decay"), [((3, 4), DECAY), ((4,), 0.0)])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_couples_its_decay_and_adamw_does_not(
    name: Any, shape: tuple[int, ...], decay: float
) -> None:
    config = OptimConfig(
        name=name,
        learning_rate=LEARNING_RATE,
        weight_decay=DECAY,
        beta1=0.8,
        beta2=0.95,
        epsilon=1e-3,
    )
    start = np.full(shape, 2.0)
    assert_same(train(config, start), adam(start, decay, decoupled=name == "adamw"))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_every_parameter_is_optimized_at_the_rate_of_its_group(name: Any) -> None:
    model = Layers()
    config = OptimConfig(name=name, learning_rate=0.5)
    optimizer = build_optimizer(model, config)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}
    rates = Rates(weights=0.4, biases=0.3, conv1_weights=0.2, conv1_biases=0.1)
    set_rates(optimizer, rates, config)
    found = {
        id(parameter): group["lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    exact = {
        model.convolution.weight: 0.2,
        model.convolution.bias: 0.1,
        model.norm.weight: 0.3,
        model.norm.bias: 0.3,
        model.dense.weight: 0.4,
        model.dense.bias: 0.3,
    }
    assert found == {id(parameter): rate for parameter, rate in exact.items()}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 6


def test_velocity_momentum_is_the_update_of_2012() -> None:
    """v ← 0.9 v − ε (g + 0.01 w), w ← w + v, whatever becomes of the rate ε on the way."""
    config = OptimConfig(
        name="sgd", learning_rate=0.1, weight_decay=DECAY, momentum_form="velocity"
    )
    model = Parameters()
    model.register_parameter("weight", nn.Parameter(torch.full((3, 4), 2.0)))
    (parameter,) = model.parameters()
    optimizer = build_optimizer(model, config)
    weight, velocity = np.full((3, 4), 2.0), np.zeros((3, 4))
    for gradient, rate in zip(make_gradients((3, 4)), (0.1, 0.1, 0.01, 0.01, 0.001), strict=True):
        velocity = 0.9 * velocity - rate * (gradient + DECAY * weight)
        weight = weight + velocity
        parameter.grad = torch.tensor(gradient, dtype=torch.float32)
        set_rates(optimizer, Rates(**dict.fromkeys(RATES, rate)), config)
        optimizer.step()
        np.testing.assert_allclose(parameter.detach().numpy(), weight, rtol=1e-5, atol=1e-6)


def test_a_rate_of_zero_freezes_at_once() -> None:
    config = OptimConfig(name="sgd", learning_rate=0.1, momentum_form="velocity")
    model = Layers()
    optimizer = build_optimizer(model, config)
    moving = Rates(**dict.fromkeys(RATES, 0.1))
    frozen = dataclasses.replace(moving, conv1_weights=0.0, conv1_biases=0.0)
    for rates in (moving, frozen, frozen):
        before = copy.deepcopy(model.state_dict())
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        set_rates(optimizer, rates, config)
        optimizer.step()
        after = model.state_dict()
        assert torch.equal(after["convolution.weight"], before["convolution.weight"]) == (
            rates is frozen
        )
        assert not torch.equal(after["dense.weight"], before["dense.weight"])


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_state_is_kept_under_the_names_of_parameters(name: Any) -> None:
    config = OptimConfig(name=name, learning_rate=0.1)
    first, second = Layers(), Layers()
    second.load_state_dict(first.state_dict())
    optimizers = [build_optimizer(model, config) for model in (first, second)]

    def step(model: Network, optimizer: torch.optim.Optimizer) -> None:
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = torch.full_like(parameter, 1.0 + number)
        optimizer.step()

    step(first, optimizers[0])
    state = copy.deepcopy(optimizer_state(first, optimizers[0]))
    assert set(state["tensors"]) == {name for name, _ in first.named_parameters()}
    second.load_state_dict(first.state_dict())
    load_optimizer_state(second, optimizers[1], state)
    step(first, optimizers[0])
    step(second, optimizers[1])
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match=r"a state for .*dense\.bias.* which this network lacks"):
        load_optimizer_state(Parameters(), optimizers[1], state)


def smoothed_cross_entropy(logits: Array, labels: npt.NDArray[np.int64], smoothing: float) -> float:
    """Szegedy et al., section 7: the target is (1 − ε) at the label and ε / classes everywhere."""
    num_classes = logits.shape[1]
    targets = np.full(logits.shape, smoothing / num_classes)
    targets[np.arange(len(labels)), labels] += 1 - smoothing
    largest = logits.max(axis=1, keepdims=True)
    log_sums = largest + np.log(np.exp(logits - largest).sum(axis=1, keepdims=True))
    return float((targets * (log_sums - logits)).sum())


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_cross_entropy_is_summed_with_smoothed_labels(smoothing: float, scale: float) -> None:
    random = np.random.default_rng(0)
    logits, labels = random.normal(0, scale, (37, 10)), random.integers(0, 10, 37)
    found = cross_entropy_sum(torch.tensor(logits), torch.tensor(labels), smoothing)
    assert found.shape == ()
    assert found.item() == pytest.approx(
        smoothed_cross_entropy(logits, labels, smoothing), rel=1e-5
    )


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_cross_entropy_of_half_precision_logits_is_computed_in_fp32(kind: torch.dtype) -> None:
    logits = torch.randn(500, 10, generator=torch.Generator().manual_seed(0)).to(kind)
    labels = torch.arange(500) % 10
    found = cross_entropy_sum(logits, labels, 0.1)
    assert found.dtype == torch.float32
    exact = smoothed_cross_entropy(logits.double().numpy(), labels.numpy(), 0.1)
    assert found.item() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_state_in_another_order_of_memory_is_put_into_the_parameters(name: Any) -> None:
    """As that of a column is, which is cut out of a whole one."""
    config = OptimConfig(name=name, learning_rate=0.1)
    first, second = Layers(), Layers()
    for model in (first, second):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    second.load_state_dict(first.state_dict())
    optimizers = [build_optimizer(model, config) for model in (first, second)]
    generator = torch.Generator().manual_seed(0)
    gradients = {
        name: torch.randn(parameter.shape, generator=generator)
        for name, parameter in first.named_parameters()
    }

    def step(model: Network, optimizer: torch.optim.Optimizer) -> None:
        for name, parameter in model.named_parameters():
            parameter.grad = torch.empty_like(parameter).copy_(gradients[name])
        optimizer.step()

    step(first, optimizers[0])
    state = optimizer_state(first, optimizers[0])
    for tensors in state["tensors"].values():
        tensors |= {kind: tensor.clone().contiguous() for kind, tensor in tensors.items()}
    load_optimizer_state(second, optimizers[1], state)
    second.load_state_dict(first.state_dict())
    step(first, optimizers[0])
    step(second, optimizers[1])
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
