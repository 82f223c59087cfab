"""The blog's three networks, layer by layer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.model.blog import AlexNetBN, AlexNetCifar, AlexNetSingle, SamePadded2
from pipeline.model.dropout import Dropout
from pipeline.model.single_column import SingleColumn
from tests.pipeline.model.networks import (
    Exact,
    assert_forward_equals,
    assert_glorot_uniform,
    assert_normal,
    assert_torch_default,
    batch_norms,
    layer_table,
    num_parameters,
    weighted_layers,
)


def make_single(num_classes: int = 1000) -> AlexNetSingle:
    torch.manual_seed(0)
    return AlexNetSingle(num_classes, dropout=0.5)


def make_bn(num_classes: int = 1000) -> AlexNetBN:
    torch.manual_seed(0)
    return AlexNetBN(num_classes, dropout=0.5, batch_norm_momentum=0.01)


def make_cifar(num_classes: int = 10, seed: int = 0) -> AlexNetCifar:
    torch.manual_seed(seed)
    return AlexNetCifar(num_classes, dropout=0.5, batch_norm_momentum=0.01)


MAKERS: dict[str, Callable[[], SingleColumn]] = {
    "single": make_single,
    "bn": make_bn,
    "cifar": make_cifar,
}


@pytest.mark.slow
def test_every_layer_of_single_has_its_shape_and_parameters() -> None:
    network = make_single()
    assert layer_table(network) == [
        ("Conv2d", (96, 55, 55), 11 * 11 * 3 * 96 + 96),
        ("NormalizeAndPool", (96, 27, 27), 0),
        ("Conv2d", (256, 27, 27), 5 * 5 * 96 * 256 + 256),
        ("NormalizeAndPool", (256, 13, 13), 0),
        ("Conv2d", (384, 13, 13), 3 * 3 * 256 * 384 + 384),
        ("ReLU", (384, 13, 13), 0),
        ("Conv2d", (384, 13, 13), 3 * 3 * 384 * 384 + 384),
        ("ReLU", (384, 13, 13), 0),
        ("Conv2d", (256, 13, 13), 3 * 3 * 384 * 256 + 256),
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
    assert num_parameters(network) == 62_378_344


def test_every_layer_of_bn_has_its_shape_and_parameters() -> None:
    network = make_bn()
    assert layer_table(network) == [
        ("Conv2d", (96, 54, 54), 34_944),
        ("MaxPool2d", (96, 26, 26), 0),
        ("ReLU", (96, 26, 26), 0),
        ("BatchNorm2d", (96, 26, 26), 384 // 2),
        ("Conv2d", (256, 26, 26), 614_656),
        ("MaxPool2d", (256, 12, 12), 0),
        ("ReLU", (256, 12, 12), 0),
        ("BatchNorm2d", (256, 12, 12), 1_024 // 2),
        ("Conv2d", (384, 12, 12), 885_120),
        ("ReLU", (384, 12, 12), 0),
        ("Conv2d", (384, 12, 12), 1_327_488),
        ("ReLU", (384, 12, 12), 0),
        ("Conv2d", (256, 12, 12), 884_992),
        ("MaxPool2d", (256, 5, 5), 0),
        ("ReLU", (256, 5, 5), 0),
        ("Linear", (4096,), 26_218_496),
        ("ReLU", (4096,), 0),
        ("Dropout", (4096,), 0),
        ("Linear", (4096,), 16_781_312),
        ("ReLU", (4096,), 0),
        ("Dropout", (4096,), 0),
        ("Linear", (1000,), 4_097_000),
    ]
    moments = [
        one for norm in batch_norms(network) for one in (norm.running_mean, norm.running_var)
    ]
    num_moments = sum(one.numel() for one in moments if one is not None)
    assert num_parameters(network) + num_moments == 50_845_416


def test_every_layer_of_cifar_has_its_shape_and_parameters() -> None:
    network = make_cifar()
    assert layer_table(network) == [
        ("SamePadded2", (48, 16, 16), 3 * 3 * 3 * 48 + 48),
        ("MaxPool2d", (48, 8, 8), 0),
        ("ReLU", (48, 8, 8), 0),
        ("BatchNorm2d", (48, 8, 8), 2 * 48),
        ("Conv2d", (96, 8, 8), 3 * 3 * 48 * 96 + 96),
        ("MaxPool2d", (96, 3, 3), 0),
        ("ReLU", (96, 3, 3), 0),
        ("BatchNorm2d", (96, 3, 3), 2 * 96),
        ("Conv2d", (192, 3, 3), 3 * 3 * 96 * 192 + 192),
        ("ReLU", (192, 3, 3), 0),
        ("Conv2d", (192, 3, 3), 3 * 3 * 192 * 192 + 192),
        ("ReLU", (192, 3, 3), 0),
        ("Conv2d", (256, 3, 3), 3 * 3 * 192 * 256 + 256),
        ("MaxPool2d", (256, 1, 1), 0),
        ("ReLU", (256, 1, 1), 0),
        ("BatchNorm2d", (256, 1, 1), 2 * 256),
        ("Linear", (512,), 256 * 512 + 512),
        ("Tanh", (512,), 0),
        ("Dropout", (512,), 0),
        ("Linear", (256,), 512 * 256 + 256),
        ("Tanh", (256,), 0),
        ("Dropout", (256,), 0),
        ("Linear", (10,), 256 * 10 + 10),
    ]
    assert num_parameters(network) == 1_249_866


def compose_single(exact: Exact, images: torch.Tensor) -> torch.Tensor:
    maps = exact.response_norm(F.relu(exact.convolve("features.0", images, stride=4)))
    maps = F.max_pool2d(maps, 3, 2)
    maps = exact.response_norm(F.relu(exact.convolve("features.2", maps, padding=2)))
    maps = F.max_pool2d(maps, 3, 2)
    maps = F.relu(exact.convolve("features.4", maps, padding=1))
    maps = F.relu(exact.convolve("features.6", maps, padding=1))
    maps = F.max_pool2d(F.relu(exact.convolve("features.8", maps, padding=1)), 3, 2)
    units = exact.drop(0, maps.flatten(1))
    units = exact.drop(1, F.relu(exact.multiply("classifier.1", units)))
    units = F.relu(exact.multiply("classifier.4", units))
    return exact.multiply("classifier.6", units)


def compose_bn(exact: Exact, images: torch.Tensor) -> torch.Tensor:
    maps = F.max_pool2d(F.relu(exact.convolve("features.0", images, stride=4)), 3, 2)
    maps = exact.batch_norm("features.3", maps)
    maps = F.max_pool2d(F.relu(exact.convolve("features.4", maps, padding=2)), 3, 2)
    maps = exact.batch_norm("features.7", maps)
    maps = F.relu(exact.convolve("features.8", maps, padding=1))
    maps = F.relu(exact.convolve("features.10", maps, padding=1))
    maps = F.max_pool2d(F.relu(exact.convolve("features.12", maps, padding=1)), 3, 2)
    units = exact.drop(0, F.relu(exact.multiply("classifier.0", maps.flatten(1))))
    units = exact.drop(1, F.relu(exact.multiply("classifier.3", units)))
    return exact.multiply("classifier.6", units)


def compose_cifar(exact: Exact, images: torch.Tensor) -> torch.Tensor:
    padded = F.pad(images, (0, 1, 0, 1))
    maps = F.relu(exact.convolve("features.0.convolution", padded, stride=2))
    maps = exact.batch_norm("features.3", F.max_pool2d(maps, 2, 2))
    maps = F.max_pool2d(F.relu(exact.convolve("features.4", maps, padding=1)), 3, 2)
    maps = exact.batch_norm("features.7", maps)
    maps = F.relu(exact.convolve("features.8", maps, padding=1))
    maps = F.relu(exact.convolve("features.10", maps, padding=1))
    maps = F.max_pool2d(F.relu(exact.convolve("features.12", maps, padding=1)), 3, 2)
    maps = exact.batch_norm("features.15", maps)
    units = exact.drop(0, exact.multiply("classifier.0", maps.flatten(1)).tanh())
    units = exact.drop(1, exact.multiply("classifier.3", units).tanh())
    return exact.multiply("classifier.6", units)


@pytest.mark.slow
def test_forward_of_single_is_the_blogs() -> None:
    assert_forward_equals(make_single(num_classes=7), compose_single, count=2)


@pytest.mark.slow
def test_forward_of_bn_is_the_blogs() -> None:
    assert_forward_equals(make_bn(num_classes=7), compose_bn, count=2)


def test_forward_of_cifar_is_the_blogs() -> None:
    assert_forward_equals(make_cifar(), compose_cifar, count=4)


def convolve_with_tensorflow_padding(
    images: npt.NDArray[np.float64], weight: npt.NDArray[np.float64], bias: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """3×3, stride 2, `same`: TensorFlow pads (out − 1) · 2 + 3 − in = 1, the odd one at the end."""
    count, _, height, width = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 1)))
    output = np.empty((count, len(weight), height // 2, width // 2))
    for row in range(height // 2):
        for column in range(width // 2):
            window = padded[:, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            output[:, :, row, column] = np.tensordot(window, weight, ([1, 2, 3], [1, 2, 3])) + bias
    return output


def test_the_first_convolution_pads_right_and_below_only() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3, stride=2)
    images = torch.randn(2, 3, 8, 6)
    with torch.no_grad():
        output = SamePadded2(convolution)(images).numpy()
    weight, bias = (parameter.detach().double().numpy() for parameter in convolution.parameters())
    exact = convolve_with_tensorflow_padding(images.double().numpy(), weight, bias)
    np.testing.assert_allclose(output, exact, rtol=1e-5, atol=1e-5)


def test_single_begins_with_gaussian_convolutions_and_torchs_linear_layers() -> None:
    weighted = weighted_layers(make_single())
    assert len(weighted) == 8
    for layer, bias in zip(weighted[:5], (0, 1, 0, 1, 1), strict=True):
        assert isinstance(layer, nn.Conv2d)
        assert_normal(layer.weight, std=0.01)
        assert layer.bias is not None
        assert layer.bias.eq(bias).all()
    for layer in weighted[5:]:
        assert_torch_default(layer)


@pytest.mark.parametrize("name", ["bn", "cifar"])
def test_weights_are_glorot_uniform_and_biases_zero(name: str) -> None:
    weighted = weighted_layers(MAKERS[name]())
    assert len(weighted) == 8
    for layer in weighted:
        assert_glorot_uniform(layer)


@pytest.mark.parametrize(("name", "count"), [("bn", 2), ("cifar", 3)])
def test_batch_norm_has_keras_defaults(name: str, count: int) -> None:
    norms = batch_norms(MAKERS[name]())
    assert len(norms) == count
    for norm in norms:
        assert norm.eps == 1e-3
        assert norm.momentum == 0.01
        assert norm.weight.eq(1).all()
        assert norm.bias.eq(0).all()


def test_dropout_has_its_probability_and_a_layer_number_each() -> None:
    network = AlexNetCifar(num_classes=10, dropout=0.3, batch_norm_momentum=0.01)
    dropouts = [one for one in network.modules() if isinstance(one, Dropout)]
    assert [one.probability for one in dropouts] == [0.3, 0.3]
    ones, keys = torch.ones(1, 256), torch.tensor([7])
    masks = [Dropout(0.3, layer=layer)(ones, keys) for layer in (0, 1)]
    assert all(
        torch.equal(one(ones, keys), mask) for one, mask in zip(dropouts, masks, strict=True)
    )


@pytest.mark.parametrize("name", ["single", "bn", "cifar"])
def test_the_first_convolution_sees_the_image(name: str) -> None:
    with torch.device("meta"):
        network = MAKERS[name]()
    assert network.first_convolution is weighted_layers(network)[0]
    assert network.first_convolution.in_channels == 3


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_the_last_layer_has_one_output_a_class(num_classes: int) -> None:
    network = make_cifar(num_classes).eval()
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, num_classes)
    assert num_parameters(network) == 1_249_866 + (num_classes - 10) * 257


def test_the_same_seed_gives_the_same_weights() -> None:
    states = [make_cifar(seed=seed).state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["classifier.0.weight"], states[2]["classifier.0.weight"])


def test_relu_behind_the_pool_is_relu_before_it() -> None:
    torch.manual_seed(3)
    relu, pool = nn.ReLU(), nn.MaxPool2d(3, 2)
    values = torch.randn(4, 6, 9, 9) - 1  # most windows have a positive value, some have none
    before, behind = (values.clone().requires_grad_() for _ in range(2))
    expected, found = pool(relu(before)), relu(pool(behind))
    assert (expected == 0).any()
    assert torch.equal(found, expected)
    direction = torch.randn_like(found)
    (expected * direction).sum().backward()
    (found * direction).sum().backward()
    assert before.grad is not None
    assert behind.grad is not None
    assert torch.equal(behind.grad, before.grad)
