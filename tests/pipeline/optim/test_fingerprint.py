"""What the fingerprint sees for certain, and who is named for a difference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.model import ModelConfig
from pipeline.model.build import build_model
from pipeline.optim import fingerprint as fingerprint_module
from pipeline.optim.fingerprint import (
    ALL_TENSORS,
    Difference,
    are_equal,
    find_difference,
    fingerprint,
    halves_of,
    held_by,
    of_each,
)

NUM_VALUES = 3 * 8192 + 5


def by_definition(tensors: list[torch.Tensor]) -> int:
    """In Python's integers; large tensors come first."""
    tensors = sorted(tensors, key=lambda each: each.numel() <= fingerprint_module._SMALL_VALUES)
    bits = [int(bits) for tensor in tensors for bits in tensor.flatten().view(torch.int32).tolist()]
    total = sum(x * (2 * number + 1) for number, x in enumerate(bits)) % 2**64
    return total - 2**64 if total >= 2**63 else total


def random_tensors(seed: int) -> list[torch.Tensor]:
    """Of any bits, so of NaNs too; fewer and more values than there are columns."""
    rng = np.random.default_rng(seed)
    sizes = (1, 700, NUM_VALUES - 705, 4)
    bits = (rng.integers(-(2**31), 2**31, size=size, dtype=np.int64) for size in sizes)
    return [torch.from_numpy(part.astype(np.int32)).view(torch.float32) for part in bits]


def value_at(tensors: list[torch.Tensor], position: int) -> torch.Tensor:
    """The bits of the value of that number, to be changed."""
    for tensor in tensors:
        if position < tensor.numel():
            return tensor.view(torch.int32)[position]
        position -= tensor.numel()
    raise IndexError(position)


@pytest.mark.parametrize("small", [1, 1000, 1 << 22])
def test_it_is_the_sum_that_is_documented(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint_module, "_SMALL_VALUES", small)
    tensors = random_tensors(0)
    assert int(fingerprint(tensors)) == by_definition(tensors)


def test_sums_of_torch_are_those_of_numpy() -> None:
    """A GPU's are made by torch."""
    rows = torch.from_numpy(np.random.default_rng(1).integers(-(2**31), 2**31, (5, 700), np.int32))
    for dimension in (0, 1):
        assert torch.equal(fingerprint_module._sum(rows, dimension), rows.sum(dimension))


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.integers(0, NUM_VALUES - 1), st.integers(0, 31))
def test_any_flipped_bit_changes_it(seed: int, position: int, bit: int) -> None:
    tensors = random_tensors(seed)
    before = int(fingerprint(tensors))
    value = value_at(tensors, position)
    value ^= -(2**31) if bit == 31 else 1 << bit
    assert int(fingerprint(tensors)) != before


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.integers(0, NUM_VALUES - 1), st.integers(0, NUM_VALUES - 1))
def test_so_do_two_values_that_change_places(seed: int, first: int, second: int) -> None:
    tensors = random_tensors(seed)
    before = int(fingerprint(tensors))
    one, other = value_at(tensors, first), value_at(tensors, second)
    is_same = int(one) == int(other)
    kept = int(one)
    one.copy_(other)
    other.fill_(kept)
    assert (int(fingerprint(tensors)) == before) == is_same


def test_a_sign_that_moves_to_the_next_value_changes_it() -> None:
    tensor = torch.ones(2 * 4096)
    for first, second in ((0, 1), (0, 4096), (5, 4096 + 5)):
        there, here = tensor.clone(), tensor.clone()
        there[first], here[second] = -1.0, -1.0
        assert int(fingerprint([there])) != int(fingerprint([here]))


@given(st.integers(-(2**63), 2**63 - 1))
def test_halves_hold_all_64_bits(value: int) -> None:
    upper, lower = halves_of(torch.tensor(value)).tolist()
    assert (int(upper) << 32) + int(lower) == value


def test_the_memory_format_of_weights_is_no_difference_of_their_values() -> None:
    weights = torch.randn(8, 3, 5, 5)
    there = weights.to(memory_format=torch.channels_last)
    assert int(fingerprint([there])) == by_definition([weights.movedim(1, -1)])


def fingerprints_of(held: dict[str, torch.Tensor]) -> dict[str, int]:
    return of_each(held, int(fingerprint(held.values())))


def test_every_weight_and_moment_of_a_network_counts() -> None:
    model = build_model(ModelConfig(name="alexnet_cifar"), 10, (32, 32))
    held = held_by(model)
    assert held.keys() >= {name for name, _ in model.named_parameters()}
    moments = {name for name, _ in model.named_buffers() if "running" in name}
    assert moments
    assert held.keys() >= moments
    before = fingerprints_of(held)
    for name, tensor in held.items():
        tensor.view(-1)[-1] += 1.0
        after = fingerprints_of(held_by(model))
        changed = {each for each in after if after[each] != before[each]}
        assert changed == {name, ALL_TENSORS}
        before = after


A, B, C = ({"w": number, "b": 9, ALL_TENSORS: number + 9} for number in (1, 2, 3))


@pytest.mark.parametrize(
    ("of_ranks", "ranks", "is_decided"),
    [
        ([A, A, B], (2,), True),
        ([B, A, A, A], (0,), True),
        ([A, B], (0, 1), False),
        ([A, A, B, B], (0, 1, 2, 3), False),
        ([A, B, C], (0, 1, 2), False),
        ([A, B, A, C, A], (1, 3), True),
    ],
)
def test_the_minority_is_named(
    of_ranks: list[dict[str, int]], ranks: tuple[int, ...], is_decided: bool
) -> None:
    assert not are_equal([of_rank[ALL_TENSORS] for of_rank in of_ranks], 1)
    assert find_difference(of_ranks, 1) == Difference("w", ranks, is_decided)


def test_each_column_is_compared_with_its_own_kind() -> None:
    first = {"w": 1, "fc8.bias": 5, ALL_TENSORS: 6}
    second = {"w": 2, ALL_TENSORS: 2}
    assert are_equal([6, 2, 6, 2], 2)
    assert find_difference([first, second] * 2, 2) is None
    flipped = second | {"w": 3, ALL_TENSORS: 3}
    assert not are_equal([6, 2, 6, 3], 2)
    undecided = Difference("w", (1, 3), is_decided=False)
    assert find_difference([first, second, first, flipped], 2) == undecided
    of_three = [first, flipped, first, second, first, second]
    assert find_difference(of_three, 2) == Difference("w", (1,), is_decided=True)
    other_bias = first | {"fc8.bias": 4, ALL_TENSORS: 5}
    found = find_difference([first, second, other_bias, second], 2)
    assert found == Difference("fc8.bias", (0, 2), is_decided=False)


def test_a_device_that_took_the_fingerprint_wrongly_once_is_named() -> None:
    """Though its weights are right, and so is each tensor's when looked at again."""
    held = {"w": torch.ones(3)}
    of_ranks = [of_each(held, of_all) for of_all in (7, 8, 7)]
    assert find_difference(of_ranks, 1) == Difference(ALL_TENSORS, (1,), is_decided=True)


def test_the_first_tensor_that_differs_is_named() -> None:
    plain = {"a": 1, "b": 2, "c": 3, ALL_TENSORS: 6}
    other = plain | {"b": 9, "c": 9, ALL_TENSORS: 19}
    assert find_difference([plain, other, plain], 1) == Difference("b", (1,), is_decided=True)
