"""The blog's CIFAR-10 network, layer by layer."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from pipeline.config import ModelConfig
from pipeline.model import build_model
from pipeline.model.blog import AlexNetCifar, SamePadded2

TRAINABLE_PARAMETERS = 1_249_866


@pytest.fixture
def network() -> AlexNetCifar:
    torch.manual_seed(0)
    return AlexNetCifar(num_classes=10, dropout=0.5, batch_norm_momentum=0.01)


def layers(network: AlexNetCifar) -> list[nn.Module]:
    return [*network.features, *network.classifier]


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


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


def test_every_layer_has_the_blogs_shape_and_parameters(network: AlexNetCifar) -> None:
    found = []
    values = torch.zeros(2, 3, 32, 32)
    for layer in layers(network):
        if isinstance(layer, nn.Linear) and values.ndim == 4:
            values = values.flatten(1)
        values = layer(values)
        found.append((type(layer).__name__, tuple(values.shape[1:]), num_parameters(layer)))
    assert found == [
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
    assert num_parameters(network) == TRAINABLE_PARAMETERS


def test_forward_is_all_layers_in_order(network: AlexNetCifar) -> None:
    network.eval()
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    values = images
    for layer in layers(network):
        values = layer(values.flatten(1) if isinstance(layer, nn.Linear) else values)
    assert torch.equal(network(images), values)
    assert values.shape == (5, 10)


def test_the_first_convolution_pads_right_and_below_only() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3, stride=2)
    images = torch.randn(2, 3, 8, 6)
    with torch.no_grad():
        output = SamePadded2(convolution)(images).numpy()
    weight, bias = (parameter.detach().double().numpy() for parameter in convolution.parameters())
    exact = convolve_with_tensorflow_padding(images.double().numpy(), weight, bias)
    np.testing.assert_allclose(output, exact, rtol=1e-5, atol=1e-5)


def test_weights_are_glorot_uniform_and_biases_zero(network: AlexNetCifar) -> None:
    weighted = [one for one in network.modules() if isinstance(one, nn.Conv2d | nn.Linear)]
    assert len(weighted) == 8
    for layer in weighted:
        weight = layer.weight.detach()
        receptive_field = weight[0, 0].numel()
        fans = (weight.shape[0] + weight.shape[1]) * receptive_field
        limit = math.sqrt(6 / fans)
        count = weight.numel()
        assert weight.abs().max().item() <= limit
        assert weight.abs().max().item() > limit * (1 - 20 / count)
        assert abs(weight.mean().item()) < 5 * limit / math.sqrt(3 * count)
        # The variance of a uniform variable is limit²/3, the deviation of its square limit²·√(4/45)
        deviation = math.sqrt(4 / 45 / count)
        assert weight.square().mean().item() / limit**2 == pytest.approx(1 / 3, abs=5 * deviation)
        assert layer.bias is not None
        assert not layer.bias.any()


def test_batch_norm_has_keras_defaults(network: AlexNetCifar) -> None:
    norms = [one for one in network.modules() if isinstance(one, nn.BatchNorm2d)]
    assert len(norms) == 3
    for norm in norms:
        assert norm.eps == 1e-3
        assert norm.momentum == 0.01
        assert norm.weight.eq(1).all()
        assert norm.bias.eq(0).all()


def test_dropout_acts_in_training_with_its_probability() -> None:
    network = AlexNetCifar(num_classes=10, dropout=0.3, batch_norm_momentum=0.01)
    assert [one.p for one in network.modules() if isinstance(one, nn.Dropout)] == [0.3, 0.3]


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_the_last_layer_has_one_output_a_class(num_classes: int) -> None:
    network = build_model(ModelConfig(), num_classes, (32, 32, 3))
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, num_classes)
    assert num_parameters(network) == TRAINABLE_PARAMETERS + (num_classes - 10) * 257


def test_the_same_seed_gives_the_same_weights() -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build_model(ModelConfig(), 10, (32, 32, 3)).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["classifier.0.weight"], states[2]["classifier.0.weight"])


@pytest.mark.parametrize("shape", [(224, 224, 3), (32, 16, 3)])
def test_images_of_another_size_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(
        ValueError, match=rf"takes images of 32×32; .* are {shape[0]}×{shape[1]}: .*--size 32"
    ):
        build_model(ModelConfig(), 10, shape)


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
