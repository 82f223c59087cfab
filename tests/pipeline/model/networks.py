"""What the networks' tests share: tables of layers, statistics of weights, exact arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.model.dropout import Dropout
from pipeline.model.single_column import SingleColumn

KEYS = torch.tensor([-8_070_450_532_247_928_832, 3, 0, 9_223_372_036_854_775_807])

Row = tuple[str, tuple[int, ...], int]
"""A layer's type, the shape of what it makes of one image, its trainable parameters."""


def layers(network: SingleColumn) -> list[nn.Module]:
    return [*network.features, *network.classifier]


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def layer_table(network: SingleColumn) -> list[Row]:
    """One row a layer, for images of the network's own size, in evaluation."""
    rows = []
    values = torch.zeros(1, 3, network.image_size, network.image_size)
    for layer in layers(network.eval()):
        if layer is network.classifier[0]:
            values = values.flatten(1)
        values = layer(values, None) if isinstance(layer, Dropout) else layer(values)
        rows.append((type(layer).__name__, tuple(values.shape[1:]), num_parameters(layer)))
    return rows


def assert_uniform(values: torch.Tensor, limit: float) -> None:
    """Uniform in ±limit: extremes, mean and variance (which is limit²/3)."""
    count = values.numel()
    largest = values.detach().abs().max().item()
    assert limit * (1 - 20 / count) < largest <= limit * (1 + 1e-6)
    assert abs(values.mean().item()) < 5 * limit / math.sqrt(3 * count)
    # The deviation of a square is limit²·√(4/45)
    variance = values.detach().square().mean().item()
    assert variance / limit**2 == pytest.approx(1 / 3, abs=5 * math.sqrt(4 / 45 / count))


def assert_normal(values: torch.Tensor, std: float) -> None:
    """Gaussian around 0: mean, deviation, and the share within one deviation."""
    count = values.numel()
    assert abs(values.mean().item()) < 5 * std / math.sqrt(count)
    assert values.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * count))
    inside = values.detach().abs().lt(std).double().mean().item()
    assert inside == pytest.approx(0.6827, abs=5 * math.sqrt(0.6827 * 0.3173 / count) + 1e-4)


def assert_glorot_uniform(layer: nn.Conv2d | nn.Linear) -> None:
    weight = layer.weight
    receptive_field = weight[0, 0].numel()
    assert_uniform(weight, math.sqrt(6 / ((weight.shape[0] + weight.shape[1]) * receptive_field)))
    assert layer.bias is not None
    assert not layer.bias.any()


def assert_torch_default(layer: nn.Conv2d | nn.Linear) -> None:
    """Weights and biases uniform in ±1 / √(inputs of a unit)."""
    assert layer.bias is not None
    for parameter in (layer.weight, layer.bias):
        assert_uniform(parameter, 1 / math.sqrt(layer.weight[0].numel()))


def weighted_layers(network: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [one for one in network.modules() if isinstance(one, nn.Conv2d | nn.Linear)]


def batch_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [one for one in network.modules() if isinstance(one, nn.BatchNorm2d)]


def unsettle(network: nn.Module) -> None:
    """Replace what begins as 0 or 1, so that leaving it out shows."""
    for layer in weighted_layers(network):
        assert layer.bias is not None
        nn.init.uniform_(layer.bias, -0.3, 0.5)
    for norm in batch_norms(network):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.bias, -1, 1)
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.001, 0.1)


@dataclass(frozen=True)
class Exact:
    """A network's layers in float64, by their names in its state dict."""

    state: Mapping[str, torch.Tensor]
    training: bool
    """With dropout of one half by KEYS, and BatchNorm's moments from the batch."""

    def _pair(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self.state[f"{name}.weight"].double(), self.state[f"{name}.bias"].double()

    def convolve(
        self, name: str, maps: torch.Tensor, stride: int = 1, padding: int = 0
    ) -> torch.Tensor:
        return F.conv2d(maps, *self._pair(name), stride=stride, padding=padding)

    def multiply(self, name: str, units: torch.Tensor) -> torch.Tensor:
        # In pieces, as the largest weight has 300 MB in float64
        pieces = self.state[f"{name}.weight"].split(256)
        products = [units @ piece.double().T for piece in pieces]
        return torch.cat(products, dim=1) + self.state[f"{name}.bias"].double()

    def batch_norm(self, name: str, maps: torch.Tensor) -> torch.Tensor:
        if self.training:
            mean, variance = maps.mean((0, 2, 3)), maps.var((0, 2, 3), correction=0)
        else:
            mean = self.state[f"{name}.running_mean"].double()
            variance = self.state[f"{name}.running_var"].double()
        weight, bias = self._pair(name)
        scale = weight / (variance + 1e-3).sqrt()
        return (maps - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]

    def response_norm(self, maps: torch.Tensor) -> torch.Tensor:
        """Section 3.3 of the paper with the constants of the 2012 code, whose α is 1e-4 / 5."""
        squares = F.pad(maps.square(), (0, 0, 0, 0, 2, 2))
        return maps * (2 + 2e-5 * squares.unfold(1, 5, 1).sum(-1)).pow(-0.75)

    def drop(self, layer: int, units: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return units
        factor: torch.Tensor = Dropout(0.5, layer=layer)(torch.ones_like(units), KEYS[: len(units)])
        return units * factor


Composition = Callable[[Exact, torch.Tensor], torch.Tensor]
"""Images N×3×S×S in float64 to logits."""


def assert_forward_equals(network: SingleColumn, composition: Composition, count: int) -> None:
    """The whole forward in evaluation and in training, for a batch of `count` images.

    Pixels beyond 255 make response norms matter.
    """
    unsettle(network)
    generator = torch.Generator().manual_seed(1)
    size = network.image_size
    images = torch.randn(count, 3, size, size, generator=generator) * 300
    for training in (False, True):
        network.train(training)
        with torch.no_grad():
            exact = composition(Exact(network.state_dict(), training), images.double())
            found = network(images, KEYS[:count] if training else None)
        assert found.shape == exact.shape
        torch.testing.assert_close(
            found.double(), exact, rtol=0, atol=1e-5 * exact.abs().max().item()
        )
