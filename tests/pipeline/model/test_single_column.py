"""The network of 2014: torchvision's layers, names, initial weights and values."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pipeline.model.single_column import AlexNet2014
from tests.pipeline.model.networks import (
    Exact,
    assert_forward_equals,
    assert_torch_default,
    layer_table,
    num_parameters,
    weighted_layers,
)


def make_network(num_classes: int = 1000) -> AlexNet2014:
    torch.manual_seed(0)
    return AlexNet2014(num_classes, dropout=0.5)


def compose(exact: Exact, images: torch.Tensor) -> torch.Tensor:
    """The order of torchvision's `AlexNet.forward`, with its average pool."""
    maps = F.max_pool2d(F.relu(exact.convolve("features.0", images, stride=4, padding=2)), 3, 2)
    maps = F.max_pool2d(F.relu(exact.convolve("features.3", maps, padding=2)), 3, 2)
    maps = F.relu(exact.convolve("features.6", maps, padding=1))
    maps = F.relu(exact.convolve("features.8", maps, padding=1))
    maps = F.max_pool2d(F.relu(exact.convolve("features.10", maps, padding=1)), 3, 2)
    units = exact.drop(0, F.adaptive_avg_pool2d(maps, (6, 6)).flatten(1))
    units = exact.drop(1, F.relu(exact.multiply("classifier.1", units)))
    units = F.relu(exact.multiply("classifier.4", units))
    return exact.multiply("classifier.6", units)


@pytest.mark.slow
def test_every_layer_has_its_shape_and_parameters() -> None:
    network = make_network()
    assert layer_table(network) == [
        ("Conv2d", (64, 55, 55), 11 * 11 * 3 * 64 + 64),
        ("MaxPool2d", (64, 27, 27), 0),
        ("ReLU", (64, 27, 27), 0),
        ("Conv2d", (192, 27, 27), 5 * 5 * 64 * 192 + 192),
        ("MaxPool2d", (192, 13, 13), 0),
        ("ReLU", (192, 13, 13), 0),
        ("Conv2d", (384, 13, 13), 3 * 3 * 192 * 384 + 384),
        ("ReLU", (384, 13, 13), 0),
        ("Conv2d", (256, 13, 13), 3 * 3 * 384 * 256 + 256),
        ("ReLU", (256, 13, 13), 0),
        ("Conv2d", (256, 13, 13), 3 * 3 * 256 * 256 + 256),
        ("MaxPool2d", (256, 6, 6), 0),
        ("ReLU", (256, 6, 6), 0),
        ("Dropout", (9216,), 0),
        ("Linear", (4096,), 9216 * 4096 + 4096),
        ("ReLU", (4096,), 0),
        ("Dropout", (4096,), 0),
        ("Linear", (4096,), 4096 * 4096 + 4096),
        ("ReLU", (4096,), 0),
        ("Linear", (1000,), 4096 * 1000 + 1000),
    ]
    assert num_parameters(network) == 61_100_840


def test_torchvisions_weights_fit_by_name_and_shape() -> None:
    with torch.device("meta"):
        network = make_network()
    found = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert found == {
        "features.0.weight": (64, 3, 11, 11),
        "features.0.bias": (64,),
        "features.3.weight": (192, 64, 5, 5),
        "features.3.bias": (192,),
        "features.6.weight": (384, 192, 3, 3),
        "features.6.bias": (384,),
        "features.8.weight": (256, 384, 3, 3),
        "features.8.bias": (256,),
        "features.10.weight": (256, 256, 3, 3),
        "features.10.bias": (256,),
        "classifier.1.weight": (4096, 9216),
        "classifier.1.bias": (4096,),
        "classifier.4.weight": (4096, 4096),
        "classifier.4.bias": (4096,),
        "classifier.6.weight": (1000, 4096),
        "classifier.6.bias": (1000,),
    }


@pytest.mark.slow
def test_forward_is_torchvisions() -> None:
    assert_forward_equals(make_network(num_classes=7), compose, count=2)


@pytest.mark.slow
def test_weights_and_biases_are_torchs_defaults() -> None:
    weighted = weighted_layers(make_network())
    assert len(weighted) == 8
    for layer in weighted:
        assert_torch_default(layer)
