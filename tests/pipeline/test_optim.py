"""Optimizers and the loss against NumPy in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from pipeline.config import OptimConfig
from pipeline.optim import build_optimizer, cross_entropy_sum, set_learning_rate

Array = npt.NDArray[np.float64]

NUM_STEPS = 5
LEARNING_RATE = 0.1
DECAY = 0.01


def make_gradients(shape: tuple[int, ...]) -> list[Array]:
    random = np.random.default_rng(len(shape))
    return [random.normal(size=shape) for _ in range(NUM_STEPS)]


def train(config: OptimConfig, start: Array) -> Iterator[Array]:
    """The parameter after each step."""
    model = nn.Module()
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
def test_every_parameter_is_optimized_at_the_rate_that_is_set(name: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    optimizer = build_optimizer(model, OptimConfig(name=name, learning_rate=0.5))
    optimized = [one for group in optimizer.param_groups for one in group["params"]]
    assert {id(one) for one in optimized} == {id(one) for one in model.parameters()}
    assert len(optimized) == len(list(model.parameters()))
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}
    set_learning_rate(optimizer, 0.25)
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}


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
