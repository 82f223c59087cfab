"""The split layout against the fused one: values, gradients, what crosses, what is averaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from pipeline.config.model import ModelConfig
from pipeline.config.schema import Config
from pipeline.model.build import build_model
from pipeline.model.columns import BOTH, Columns, has_part, part_of, parts_of, whole_of
from pipeline.optim.replica import Replica
from pipeline.ranks.mesh import build_mesh
from pipeline.ranks.world import World
from tests.pipeline.rank_jobs import call_on_ranks

NUM_CLASSES = 12
CONFIG = ModelConfig(name="alexnet_2012", dropout_form="original")

Tensors = dict[str, torch.Tensor]


@pytest.mark.slow
def test_parts_make_up_the_whole() -> None:
    torch.manual_seed(0)
    whole = build_model(CONFIG, NUM_CLASSES, (224, 224)).state_dict()
    parts = [parts_of(whole, column) for column in (0, 1)]
    assert set(parts[0]) - set(parts[1]) == {"fc8.bias"}
    for name, tensor in whole.items():
        halves = [part[name] for part in parts if name in part]
        assert sum(half.numel() for half in halves) == tensor.numel(), name
        dimension = 1 if name == "fc8.weight" else 0
        assert torch.equal(torch.cat(halves, dimension), tensor), name
    step = torch.tensor(3.0)  # of the optimizer
    assert part_of("conv1.weight", step, 1) == part_of("fc8.bias", step, 0) == step
    assert parts_of({"fc8.bias": step}, 1) == {}


def joined_and_added(world: World, dtype: torch.dtype) -> tuple[Tensors, list[int]]:
    mesh = build_mesh(world, "split", timeout_seconds=30)
    columns = mesh.columns
    held = (torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4) * (1 + world.rank) % 17).to(dtype)
    held = held.to(memory_format=torch.channels_last).requires_grad_()
    with counting() as sent:
        joined = columns.join(held)
        weights = torch.arange(joined.numel()).reshape(joined.shape).to(dtype) % 5 + world.rank
        (joined * weights).sum().backward()
        partial = held.detach().mean((2, 3)).requires_grad_()
        total = columns.add(partial)
        (total * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert held.grad is not None
    assert partial.grad is not None
    assert joined.is_contiguous(memory_format=torch.channels_last)
    tensors = {"held": held, "joined": joined, "weights": weights, "grad": held.grad}
    tensors |= {"partial": partial, "total": total, "partial grad": partial.grad}
    return {name: tensor.detach().float() for name, tensor in tensors.items()}, sent


@contextmanager
def counting() -> Iterator[list[int]]:
    """The numbers of elements that each collective of the block sends to the other rank."""
    sent: list[int] = []
    gather, swap = dist.all_gather, dist.all_to_all_single

    def counted_gather(parts: Any, held: torch.Tensor, group: Any) -> None:
        sent.append(held.numel())
        gather(parts, held, group=group)

    def counted_swap(received: torch.Tensor, given: torch.Tensor, group: Any) -> None:
        sent.append(given.numel() // 2)
        swap(received, given, group=group)

    dist.all_gather, dist.all_to_all_single = counted_gather, counted_swap  # type: ignore[assignment]
    try:
        yield sent
    finally:
        dist.all_gather, dist.all_to_all_single = gather, swap


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_joining_and_adding_are_right_in_both_directions(dtype: torch.dtype) -> None:
    (first, sent), (second, _) = call_on_ranks(2, joined_and_added, dtype)
    both = torch.cat([first["held"], second["held"]], dim=1)
    assert torch.equal(first["joined"], both)
    assert torch.equal(second["joined"], both)
    gradient = first["weights"] + second["weights"]
    assert torch.equal(first["grad"], gradient[:, :3])
    assert torch.equal(second["grad"], gradient[:, 3:])
    assert torch.equal(first["total"], first["partial"] + second["partial"])
    assert torch.equal(first["total"], second["total"])
    assert torch.equal(first["partial grad"], torch.tensor([[1.0, 2.0, 3.0]] * 2))
    assert sent == [2 * 3 * 16, 2 * 3 * 16, 2 * 3], "adding sends nothing back"


def forward_and_backward(world: World | None, num_images: int = 3) -> tuple[Tensors, list[int]]:
    """Logits and gradients of the network, by the whole or by this rank's column."""
    columns = BOTH
    if world is not None:
        columns = build_mesh(world, "split", timeout_seconds=60).columns
    torch.manual_seed(7)
    model = build_model(CONFIG, NUM_CLASSES, (224, 224), columns)
    generator = torch.Generator().manual_seed(8)
    images = 60 * torch.randn(num_images, 3, 224, 224, generator=generator)
    keys = torch.arange(num_images) * 0x1234567
    with counting() as sent:
        logits = model(images.to(memory_format=torch.channels_last), keys)
        F.cross_entropy(logits, torch.arange(num_images)).backward()
    found = {"logits": logits.detach()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        found[name] = parameter.grad
    return found, sent


def assert_close(found: torch.Tensor, exact: torch.Tensor, name: str) -> None:
    error = (found - exact).abs().max()
    assert error <= 1e-5 * exact.abs().max(), f"{name}: {error}"


@pytest.mark.slow
def test_the_columns_of_two_ranks_compute_what_one_rank_does() -> None:
    whole, sent_by_one = forward_and_backward(None)
    assert sent_by_one == []
    halves = call_on_ranks(2, forward_and_backward)
    assert torch.equal(halves[0][0]["logits"], halves[1][0]["logits"]), "the same bits on both"
    assert_close(halves[0][0]["logits"], whole["logits"], "logits")
    for column, (found, _) in enumerate(halves):
        for name in set(whole) - {"logits"}:
            assert (name in found) == has_part(name, column)
            if name in found:
                assert_close(found[name], part_of(name, whole[name], column), name)


@pytest.mark.slow
def test_activations_cross_where_the_paper_s_do() -> None:
    """Per image: pool2 to conv3, pool5 to fc6, fc6 to fc7, sums of fc8; and back but these."""
    for _, sent in call_on_ranks(2, forward_and_backward, 1):
        forward = [128 * 13 * 13, 128 * 6 * 6, 2048]
        assert sum(forward) == 28_288
        assert sent == [*forward, NUM_CLASSES, *reversed(forward)]


def merged(world: World) -> Tensors:
    columns: Columns = build_mesh(world, "split", timeout_seconds=30).columns
    torch.manual_seed(3)
    parts = build_model(CONFIG, NUM_CLASSES, (224, 224), columns).state_dict()
    return {name: whole_of(name, part, columns) for name, part in parts.items()}


@pytest.mark.slow
def test_a_split_network_begins_with_the_weights_of_the_fused_one() -> None:
    torch.manual_seed(3)
    whole = build_model(CONFIG, NUM_CLASSES, (224, 224)).state_dict()
    first, second = call_on_ranks(2, merged)
    assert set(first) == set(whole) == set(second) | {"fc8.bias"}
    for name, tensor in whole.items():
        assert torch.equal(first[name], tensor), name


def averaged_sizes(world: World) -> list[int]:
    """The sizes of the buckets of gradients of a step, in the order they are averaged in."""
    mesh = build_mesh(world, "fused", timeout_seconds=60)
    model = build_model(CONFIG, 1000, (224, 224))
    replica = Replica(model, Config(model=CONFIG), world, mesh)
    images, zeros = torch.zeros(1, 3, 224, 224), torch.zeros(1, dtype=torch.int64)
    replica.warm_up(images, zeros, zeros)
    sizes: list[int] = []
    average = dist.all_reduce

    def counted(tensor: torch.Tensor, group: Any, async_op: bool) -> Any:
        sizes.append(tensor.numel())
        return average(tensor, group=group, async_op=async_op)

    with mock.patch.object(dist, "all_reduce", counted):
        replica.add_gradients(images, zeros, zeros, step_samples=2, is_last=True)
    return sizes


@pytest.mark.slow
def test_averaging_begins_with_the_last_layer() -> None:
    """Most of the bytes are in fc6 to fc8, and most of the backward pass comes after them."""
    (sizes, others) = call_on_ranks(2, averaged_sizes)
    assert sizes == others
    fc8, fc7, fc6, convolutions = 4_097_000, 16_781_312, 37_752_832, 2_334_080
    assert sizes[:3] == [fc8, fc7, fc6]
    assert sum(sizes[3:]) == convolutions
