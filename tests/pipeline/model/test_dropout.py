"""Dropout: what its masks depend on, how they are distributed, and what both forms compute."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.config.model import DropoutForm
from pipeline.data.order import randomness
from pipeline.model import dropout
from pipeline.model.dropout import Dropout, KeyedSequential

NUM_SAMPLES, NUM_UNITS = 128, 4096

each_probability = pytest.mark.parametrize("probability", [0.003, 0.1, 0.5, 0.9])
each_form = pytest.mark.parametrize("form", ["inverted", "original"])


def sample_keys(count: int = NUM_SAMPLES, epoch: int = 0) -> torch.Tensor:
    return torch.from_numpy(randomness.dropout_keys(0, epoch, np.arange(count)))


def kept(
    keys: torch.Tensor,
    probability: float = 0.5,
    layer: int = 0,
    first_unit: int = 0,
    num_units: int = NUM_UNITS,
) -> torch.Tensor:
    """The mask, 0 or 1 in float64, N×U."""
    module = Dropout(probability, layer=layer, first_unit=first_unit, form="original")
    mask: torch.Tensor = module(torch.ones(len(keys), num_units, dtype=torch.float64), keys)
    return mask


def mix_one(state: int) -> int:
    return int(randomness._mix(np.array(state, dtype=np.uint64)))


def assert_independent(first: torch.Tensor, second: torch.Tensor) -> None:
    """Two masks of probability ½ agree in half of their units, to within five deviations."""
    count = first.numel()
    assert first.shape == second.shape
    assert (first == second).double().mean().item() == pytest.approx(
        0.5, abs=2.5 / math.sqrt(count)
    )


@each_probability
def test_units_stay_at_the_rate_asked_for(probability: float) -> None:
    mask = kept(sample_keys(), probability)
    variance = probability * (1 - probability)
    everywhere = 5 * math.sqrt(variance / mask.numel()) + 2**-17
    assert mask.mean().item() == pytest.approx(1 - probability, abs=everywhere)
    for dimension in (0, 1):
        rates = mask.mean(dimension)
        deviation = math.sqrt(variance / mask.shape[dimension])
        # A binomial of few drops leans to one side: its far tail is longer than a Gaussian's
        assert (rates - (1 - probability)).abs().max().item() < 8 * deviation
        # Were they too even or too uneven, the variance among them would tell
        assert rates.var().item() == pytest.approx(
            deviation**2,
            rel=8 * math.sqrt((2 + 1 / (variance * mask.shape[dimension])) / len(rates)),
        )


def test_a_probability_just_below_1_drops_nearly_everything() -> None:
    assert kept(sample_keys(), 1 - 1e-9).mean().item() < 1e-4


def test_a_mask_is_the_hash_of_key_layer_and_unit() -> None:
    keys, layer, first_unit, probability = sample_keys(3), 1, 4095, 0.3
    found = kept(keys, probability, layer, first_unit, num_units=10)
    for row, key in enumerate(keys.tolist()):
        for column in range(10):
            group, place = divmod((layer << 32) + first_unit + column, 4)
            hashed = mix_one(key % (1 << 64) ^ mix_one(group))
            # 16 bits as a number from -32768 on: its highest bit turned over counts from 0
            bits = (hashed >> (16 * place) & 0xFFFF) ^ 0x8000
            assert found[row, column] == (bits >= round(probability * 65536))


def test_the_mixing_is_that_of_the_data_pipeline() -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 64, 10_000, dtype=np.uint64)
    bits[:4] = 0, 1, 1 << 63, (1 << 64) - 1
    before = torch.from_numpy(bits.view(np.int64).copy())
    mixed = dropout._mix(before)
    np.testing.assert_array_equal(mixed.numpy().view(np.uint64), randomness._mix(bits))
    np.testing.assert_array_equal(before.numpy().view(np.uint64), bits)


def test_layers_are_independent() -> None:
    masks = [kept(sample_keys(), layer=layer) for layer in range(3)]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert_independent(masks[first], masks[second])


@pytest.mark.parametrize("distance", [1, 2, 3, 4, 5, 48, 128, 1024, 2048])
def test_units_are_independent(distance: int) -> None:
    mask = kept(sample_keys())
    assert_independent(mask[:, distance:], mask[:, :-distance])


@pytest.mark.parametrize("distance", [1, 2, 64])
def test_samples_are_independent(distance: int) -> None:
    mask = kept(sample_keys())
    assert_independent(mask[distance:], mask[:-distance])


def test_epochs_are_independent() -> None:
    assert_independent(kept(sample_keys(epoch=0)), kept(sample_keys(epoch=1)))


def test_keys_that_differ_in_one_bit_are_independent() -> None:
    masks = kept(torch.tensor([0, *(1 << bit for bit in range(63)), -(1 << 63)]))
    assert_independent(masks[1:], masks[:1].expand(64, -1))


def test_a_samples_mask_does_not_depend_on_the_batch() -> None:
    keys = sample_keys(8)
    order = torch.tensor([5, 0, 5, 7])
    assert torch.equal(kept(keys[order]), kept(keys)[order])


@pytest.mark.parametrize(
    ("first_unit", "num_units"), [(0, 1), (0, 2048), (2048, 2048), (1, 7), (2, 1), (4093, 3)]
)
def test_a_part_of_the_units_has_its_part_of_the_mask(first_unit: int, num_units: int) -> None:
    keys = sample_keys(16)
    for layer in (0, 1):
        whole = kept(keys, layer=layer)[:, first_unit : first_unit + num_units]
        part = kept(keys, layer=layer, first_unit=first_unit, num_units=num_units)
        assert torch.equal(part, whole)


@each_probability
@each_form
def test_values_and_gradients_in_training(form: DropoutForm, probability: float) -> None:
    keys = sample_keys(4)
    generator = torch.Generator().manual_seed(0)
    units, direction = torch.randn(2, 4, 1000, dtype=torch.float64, generator=generator)
    units.requires_grad_()
    factor = kept(keys, probability, layer=1, num_units=1000)
    if form == "inverted":
        factor = factor / (1 - probability)
    found = Dropout(probability, layer=1, form=form)(units, keys)
    torch.testing.assert_close(found, units * factor, rtol=1e-15, atol=0)
    (found * direction).sum().backward()
    torch.testing.assert_close(units.grad, direction * factor, rtol=1e-15, atol=0)


@each_probability
@each_form
def test_values_and_gradients_in_evaluation(form: DropoutForm, probability: float) -> None:
    units = torch.linspace(-1, 1, 100, dtype=torch.float64).reshape(2, 50).requires_grad_()
    factor = 1 - probability if form == "original" else 1.0
    found = Dropout(probability, layer=1, form=form).eval()(units, None)
    torch.testing.assert_close(found, units * factor, rtol=1e-15, atol=0)
    found.sum().backward()
    torch.testing.assert_close(units.grad, torch.full_like(units, factor), rtol=1e-15, atol=0)


@each_form
def test_the_mean_over_masks_is_the_value_in_evaluation(form: DropoutForm) -> None:
    module, keys = Dropout(0.3, layer=0, form=form), sample_keys(20_000)
    trained = module(torch.ones(20_000, 8, dtype=torch.float64), keys).mean(0)
    evaluated = module.eval()(torch.ones(1, 8, dtype=torch.float64), None)[0]
    torch.testing.assert_close(trained, evaluated, rtol=0, atol=5 * math.sqrt(0.43 / 20_000))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_the_product_only(dtype: torch.dtype) -> None:
    """Not the factor too: 1 / 0.9 is off by 0.16 % in bf16, the same way for every unit."""
    units, keys = torch.linspace(1, 2, 1000, dtype=dtype).expand(4, -1), sample_keys(4)
    found = Dropout(0.1, layer=0)(units, keys)
    exact = units.double() * kept(keys, 0.1, num_units=1000) / 0.9
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=torch.finfo(dtype).eps / 1.99, atol=0)


@each_form
def test_without_probability_nothing_changes(form: DropoutForm) -> None:
    units = torch.randn(2, 5)
    module = Dropout(0.0, layer=0, form=form)
    assert torch.equal(module(units, None), units)
    assert torch.equal(module.eval()(units, None), units)


def test_training_without_keys_is_refused() -> None:
    with pytest.raises(AssertionError, match="keys"):
        Dropout(0.5, layer=0)(torch.ones(2, 5), None)


def test_a_sequence_hands_the_keys_to_its_dropouts() -> None:
    first, second = nn.Linear(6, 8), nn.Linear(8, 4)
    drop0, drop1 = Dropout(0.5, layer=0), Dropout(0.5, layer=1)
    network = KeyedSequential(drop0, first, nn.ReLU(), drop1, second)
    units, keys = torch.randn(64, 6), sample_keys(64)
    expected = second(drop1(first(drop0(units, keys)).relu(), keys))
    assert torch.equal(network(units, keys), expected)
    with pytest.raises(AssertionError, match="keys"):
        network(units)
    assert torch.equal(network.eval()(units), second(first(units).relu()))


def test_a_sequences_names_are_those_of_a_plain_one() -> None:
    keyed = KeyedSequential(nn.Linear(6, 8), Dropout(0.5, layer=0), nn.Linear(8, 4))
    plain = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 4))
    assert list(keyed.state_dict()) == list(plain.state_dict())
