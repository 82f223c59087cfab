"""The network of 2012: its tables, its geometry, its beginnings, and the whole in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.config.model import ModelConfig
from pipeline.model.alexnet import AlexNet2012
from pipeline.model.build import build_model

# Name, output, weights, biases: figure 2 of the paper and `layers-145.cfg` of the code.
LAYERS = [
    ("conv1", (96, 55, 55), 34_848, 96),
    ("pool1", (96, 27, 27), 0, 0),
    ("conv2", (256, 27, 27), 307_200, 256),
    ("pool2", (256, 13, 13), 0, 0),
    ("conv3", (384, 13, 13), 884_736, 384),
    ("conv4", (384, 13, 13), 663_552, 384),
    ("conv5", (256, 13, 13), 442_368, 256),
    ("pool5", (256, 6, 6), 0, 0),
    ("fc6", (4096,), 37_748_736, 4096),
    ("drop6", (4096,), 0, 0),
    ("fc7", (4096,), 16_777_216, 4096),
    ("drop7", (4096,), 0, 0),
    ("fc8", (1000,), 4_096_000, 1000),
]


def network(num_classes: int = 1000, **settings: Any) -> AlexNet2012:
    torch.manual_seed(0)
    config = ModelConfig(name="alexnet_2012", **settings)
    model = build_model(config, num_classes, (224, 224))
    assert isinstance(model, AlexNet2012)
    return model


def some_images(count: int) -> torch.Tensor:
    return 70 * torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
def test_every_layer_has_its_shape_and_parameters() -> None:
    model, found = network(), []
    for name, layer in model.named_children():

        def note(_: nn.Module, __: Any, output: torch.Tensor, name: str = name) -> None:
            found.append((name, tuple(output.shape[1:])))

        layer.register_forward_hook(note)
    with torch.no_grad():
        model(some_images(1), torch.zeros(1, dtype=torch.int64))
    assert found == [(name, shape) for name, shape, _, _ in LAYERS]
    for name, _, weights, biases in LAYERS:
        sizes = [p.numel() for p in getattr(model, name).parameters()]
        assert sizes == ([weights, biases] if weights else []), name
    assert sum(p.numel() for p in model.parameters()) == 60_965_224


@pytest.mark.slow
def test_the_last_windows_of_conv1_hang_over_the_edge_and_read_zeros() -> None:
    """1 + ceil((224 − 11) / 4) = 55 windows; the last begins at 216 and has 3 rows of nothing."""
    model = network().double()
    image = some_images(1).double()
    with torch.no_grad():
        padded = F.pad(image, (0, 3, 0, 3))
        maps = model.conv1(padded)
        corner = image[0, :, 216:224, 216:224]
        weight = model.conv1.weight[:, :, :8, :8]
        assert model.conv1.bias is not None
        exact = (weight * corner).sum((1, 2, 3)) + model.conv1.bias
    torch.testing.assert_close(maps[0, :, 54, 54], exact)


def response_norm(maps: torch.Tensor, alpha: float) -> torch.Tensor:
    """Section 3.3 inside each of two columns, channel by channel, in float64."""
    normed = torch.empty_like(maps)
    width = maps.shape[1] // 2
    for column in (0, 1):
        first = column * width
        for channel in range(width):
            low, high = max(0, channel - 2), min(width - 1, channel + 2)
            squares = maps[:, first + low : first + high + 1].square().sum(1)
            normed[:, first + channel] = maps[:, first + channel] / (2 + alpha * squares) ** 0.75
    return normed


def by_hand(model: AlexNet2012, images: torch.Tensor, variant: str) -> torch.Tensor:
    """Evaluation, each column's convolutions apart."""
    alpha = {"code": 1e-4 / 5, "paper": 1e-4, "none": 0.0}[variant]

    def norm(maps: torch.Tensor) -> torch.Tensor:
        return maps if variant == "none" else response_norm(maps, alpha)

    def columns(layer: nn.Conv2d, maps: torch.Tensor) -> torch.Tensor:
        assert layer.bias is not None
        halves = zip(layer.weight.chunk(2), layer.bias.chunk(2), strict=True)
        parts = [
            F.conv2d(part, weight, bias, padding=layer.padding)
            for part, (weight, bias) in zip(maps.chunk(2, 1), halves, strict=True)
        ]
        return torch.cat(parts, 1)

    maps = F.conv2d(F.pad(images, (0, 3, 0, 3)), model.conv1.weight, model.conv1.bias, stride=4)
    if variant == "paper":
        maps = F.max_pool2d(norm(maps.relu()), 3, 2)
    else:
        maps = F.max_pool2d(norm(maps), 3, 2).relu()
    maps = F.max_pool2d(norm(columns(model.conv2, maps).relu()), 3, 2)
    maps = F.conv2d(maps, model.conv3.weight, model.conv3.bias, padding=1).relu()
    maps = columns(model.conv5, columns(model.conv4, maps).relu()).relu()
    units = F.max_pool2d(maps, 3, 2).flatten(1)
    for layer in (model.fc6, model.fc7):
        units = 0.5 * (units @ layer.weight.T + layer.bias).relu()
    return units @ model.fc8.weight.T + model.fc8.bias


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["code", "paper", "none"])
def test_the_whole_network_in_float64(variant: Any) -> None:
    model = network(10, response_norm=variant, dropout_form="original").eval()
    images = some_images(2)
    with torch.no_grad():
        found = model(images.to(memory_format=torch.channels_last))
        exact = by_hand(model.double(), images.double(), variant)
    torch.testing.assert_close(
        found.double(), exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max())
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("initialization", "stds", "biases"),
    [
        ("code", (0.01, 0.01, 0.03, 0.03, 0.03, 0.01, 0.01, 0.01), (0, 1, 0, 1, 1, 1, 1, 0)),
        ("paper", (0.01,) * 8, (0, 1, 0, 1, 1, 1, 1, 0)),
        (
            "caffe",
            (0.01, 0.01, 0.01, 0.01, 0.01, 0.005, 0.005, 0.01),
            (0, 0.1, 0, 0.1, 0.1, 0.1, 0.1, 0),
        ),
    ],
)
def test_initial_weights(
    initialization: Any, stds: tuple[float, ...], biases: tuple[float, ...]
) -> None:
    model = network(initialization=initialization)
    layers = [layer for layer in model.children() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer, std, bias in zip(layers, stds, biases, strict=True):
        weight = layer.weight.detach().double().numpy()
        error = 5 * std / np.sqrt(weight.size)
        assert abs(weight.mean()) < error
        assert abs(weight.std() - std) < error
        assert layer.bias is not None
        assert torch.equal(layer.bias, torch.full_like(layer.bias, bias))


@pytest.mark.slow
def test_original_dropout_halves_in_evaluation_and_drops_in_training() -> None:
    model, images = network(10, dropout_form="original"), some_images(2)
    keys = torch.tensor([1, 2])
    seen = {}

    def note(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen["in"], seen["out"] = inputs[0].detach(), output.detach()

    model.drop6.register_forward_hook(note)
    with torch.no_grad():
        model(images, keys)
        kept = seen["out"] != 0
        assert 0.45 < kept[seen["in"] > 0].float().mean() < 0.55
        assert torch.equal(seen["out"][kept], seen["in"][kept])
        model.eval()(images)
        assert torch.equal(seen["out"], seen["in"] / 2)


@pytest.mark.slow
def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"alexnet_2012 takes images of 224×224, and gets 227×227"):
        build_model(ModelConfig(name="alexnet_2012"), 10, (227, 227))
