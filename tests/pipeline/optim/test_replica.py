"""The update, against the same mathematics written out in float64 on the whole batch."""

from __future__ import annotations

import copy
import dataclasses
import gc
import math
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from pipeline.config.optim import OptimConfig
from pipeline.config.schema import Config, DistributedConfig
from pipeline.data.order.partition import BatchPlan
from pipeline.model.network import Network
from pipeline.optim.replica import Replica
from pipeline.optim.schedule import Rates
from pipeline.ranks.world import World
from tests.pipeline.rank_jobs import call_on_ranks
from tests.pipeline.worlds import SINGLE, fused

NUM_SAMPLES = 34
NUM_CLASSES = 5
RATES = [field.name for field in dataclasses.fields(Rates)]
KEYS = torch.arange(NUM_SAMPLES)
SGD = OptimConfig(
    name="sgd",
    learning_rate=0.1,
    momentum=0.9,
    nesterov=True,
    weight_decay=0.01,
    label_smoothing=0.1,
    clip_norm=0.5,
)
ADAM = OptimConfig(name="adam", learning_rate=0.01, weight_decay=0.01, epsilon=1e-3)

Weights = dict[str, torch.Tensor]


class PlainNet(Network):
    """Without BatchNorm, so that a batch is the sum of its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.dense = nn.Linear(4 * 4 * 4, NUM_CLASSES)

    @property
    def first_convolution(self) -> nn.Conv2d:
        return self.convolution

    def forward(self, images: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        logits: torch.Tensor = self.dense(self.convolution(images).tanh().flatten(1))
        return logits


class NormNet(Network):
    """With BatchNorm behind a flat layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3 * 6 * 6)
        self.dense = nn.Linear(3 * 6 * 6, NUM_CLASSES)

    @property
    def first_convolution(self) -> nn.Conv2d:
        return nn.Conv2d(1, 1, 1)  # none of this network's

    def forward(self, images: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        logits: torch.Tensor = self.dense(self.norm(images.flatten(1)))
        return logits


def dataset() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(NUM_SAMPLES, 3, 6, 6, generator=generator)
    return images, torch.randint(NUM_CLASSES, (NUM_SAMPLES,), generator=generator)


def model_of_seed(kind: type[Network], seed: int = 3) -> Network:
    torch.manual_seed(seed)
    return kind()


def plan_of(num_replicas: int, accumulation_steps: int) -> BatchPlan:
    """Two steps an epoch: 24 samples and a ragged 10."""
    return BatchPlan(
        num_samples=NUM_SAMPLES,
        global_batch_size=24,
        num_replicas=num_replicas,
        accumulation_steps=accumulation_steps,
        drop_last=False,
    )


def train(
    world: World,
    kind: type[Network],
    optim: OptimConfig,
    accumulation_steps: int,
    num_steps: int = 4,
) -> tuple[Weights, list[float], list[float]]:
    """Weights, summed losses of this rank and gradient norms after some steps in order."""
    # Buckets of a few bytes, so that there are several.
    config = Config(optim=optim, distributed=DistributedConfig(bucket_bytes=64))
    replica = Replica(model_of_seed(kind), config, world, fused(world))
    replica.warm_up(torch.randn(2, 3, 6, 6), KEYS[:2], torch.zeros(2, dtype=torch.int64))
    plan, (images, labels) = plan_of(world.size, accumulation_steps), dataset()
    losses, norms = [], []
    for step in range(num_steps):
        loss_of_step = 0.0
        for micro_batch in range(accumulation_steps):
            rows = plan.positions(step, micro_batch, world.rank)
            loss, logits = replica.add_gradients(
                images[rows.start : rows.stop],
                KEYS[rows.start : rows.stop],
                labels[rows.start : rows.stop],
                step_samples=plan.samples_in_step(step),
                is_last=micro_batch + 1 == accumulation_steps,
            )
            assert logits.shape == (len(rows), NUM_CLASSES)
            assert not logits.requires_grad
            loss_of_step += float(loss)
        replica.set_rates(Rates(**dict.fromkeys(RATES, optim.learning_rate / (1 + step))))
        norm, outcome = replica.update()
        assert not outcome.was_skipped()
        losses.append(loss_of_step)
        norms.append(math.nan if norm is None else float(norm))
    return copy.deepcopy(replica.model.state_dict()), losses, norms


def reference(optim: OptimConfig) -> tuple[Weights, list[float]]:
    """The same, the formulas of the papers step by step in float64."""
    model = model_of_seed(PlainNet).double()
    images, labels = dataset()
    first = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    second = copy.deepcopy(first)
    plan, losses = plan_of(1, 1), []
    for step in range(4):
        rows = plan.positions(step, 0, 0)
        batch = images[rows.start : rows.stop].double(), labels[rows.start : rows.stop]
        loss = _cross_entropy(model(batch[0]), batch[1], optim.label_smoothing)
        losses.append(float(loss.detach()) * len(rows))
        gradients = dict(
            zip(first, torch.autograd.grad(loss, list(model.parameters())), strict=True)
        )
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
        factor = 1.0 if optim.clip_norm is None else min(1.0, optim.clip_norm / norm)
        rate = optim.learning_rate / (1 + step)
        for name, parameter in model.named_parameters():
            decay = optim.weight_decay if parameter.ndim > 1 else 0.0
            gradient = gradients[name] * factor + decay * parameter.detach()
            direction = _direction(optim, gradient, first[name], second[name], step + 1)
            parameter.data.sub_(rate * direction)
    return model.state_dict(), losses


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    logs = logits - logits.exp().sum(1, keepdim=True).log()
    target = F.one_hot(labels, NUM_CLASSES) * (1 - smoothing) + smoothing / NUM_CLASSES
    return -(target * logs).sum(1).mean()


def _direction(
    optim: OptimConfig,
    gradient: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    number: int,
) -> torch.Tensor:
    """Where to go; `first` and `second` are the optimizer's moving averages, brought up to date."""
    if optim.name == "sgd":
        first.mul_(optim.momentum).add_(gradient)
        return gradient + optim.momentum * first if optim.nesterov else first.clone()
    first.mul_(optim.beta1).add_((1 - optim.beta1) * gradient)
    second.mul_(optim.beta2).add_((1 - optim.beta2) * gradient**2)
    mean, square = first / (1 - optim.beta1**number), second / (1 - optim.beta2**number)
    return mean / (square.sqrt() + optim.epsilon)


def assert_close(found: Weights, expected: Weights) -> None:
    assert set(found) == set(expected)
    for name, values in expected.items():
        torch.testing.assert_close(found[name].double(), values, rtol=1e-4, atol=2e-6)


def assert_same_bits(found: Weights, expected: Weights) -> None:
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert torch.equal(found[name], values), name


@pytest.mark.slow
@pytest.mark.parametrize("optim", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize(("world_size", "accumulation_steps"), [(1, 1), (1, 3), (2, 1), (3, 2)])
def test_however_a_batch_is_divided_the_update_is_the_same(
    optim: OptimConfig, world_size: int, accumulation_steps: int
) -> None:
    expected, expected_losses = reference(optim)
    ranks: list[Any]
    if world_size == 1:
        ranks = [train(SINGLE, PlainNet, optim, accumulation_steps)]
    else:
        ranks = call_on_ranks(world_size, train, PlainNet, optim, accumulation_steps)
    for weights, _, norms in ranks:
        assert_close(weights, expected)
        assert_same_bits(weights, ranks[0][0])
        assert norms == ranks[0][2] or optim.clip_norm is None
    losses = [sum(of_step) for of_step in zip(*(losses for _, losses, _ in ranks), strict=True)]
    assert losses == pytest.approx(expected_losses, rel=1e-5)


def test_moments_are_the_mean_of_the_ranks_and_the_same_bits() -> None:
    ranks = call_on_ranks(2, train, NormNet, SGD, 2, 1)
    assert_same_bits(ranks[0][0], ranks[1][0])
    images, _ = dataset()
    alone = [nn.BatchNorm1d(3 * 6 * 6), nn.BatchNorm1d(3 * 6 * 6)]
    plan = plan_of(2, 2)
    for rank, norm in enumerate(alone):
        for micro_batch in range(2):
            rows = plan.positions(0, micro_batch, rank)
            norm(images[rows.start : rows.stop].flatten(1))
    for name in ("running_mean", "running_var"):
        mean = (getattr(alone[0], name) + getattr(alone[1], name)) / 2
        torch.testing.assert_close(ranks[0][0][f"norm.{name}"], mean)
    assert ranks[0][0]["norm.num_batches_tracked"] == 2


def test_a_warm_up_leaves_no_trace() -> None:
    replica = Replica(model_of_seed(NormNet), Config(optim=SGD), SINGLE, fused(SINGLE))
    replica.warm_up(torch.randn(4, 3, 6, 6), KEYS[:4], torch.zeros(4, dtype=torch.int64))
    assert_same_bits(replica.model.state_dict(), model_of_seed(NormNet).state_dict())
    assert [p.grad for p in replica.model.parameters()] == [None] * 4


@pytest.mark.parametrize("optim", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_state_goes_on_where_it_was_saved(optim: OptimConfig, precision: Any) -> None:
    config = Config(optim=optim, precision=precision)
    images, labels = dataset()

    def step(replica: Replica, rows: slice) -> None:
        replica.add_gradients(images[rows], KEYS[rows], labels[rows], step_samples=12, is_last=True)
        replica.update()

    first = Replica(model_of_seed(PlainNet), config, SINGLE, fused(SINGLE))
    step(first, slice(0, 12))
    saved = copy.deepcopy(first.state_dict())
    assert set(saved["model"]) == set(PlainNet().state_dict()), "the plain model's names"
    step(first, slice(12, 24))
    second = Replica(model_of_seed(PlainNet, seed=4), config, SINGLE, fused(SINGLE))
    second.load_state_dict(saved)
    step(second, slice(12, 24))
    assert_same_bits(second.model.state_dict(), first.model.state_dict())
    assert second.loss_scale == first.loss_scale


def test_another_network_s_weights_are_refused() -> None:
    replica = Replica(model_of_seed(PlainNet), Config(), SINGLE, fused(SINGLE))
    other = Replica(model_of_seed(NormNet), Config(), SINGLE, fused(SINGLE))
    with pytest.raises(ValueError, match=r"do not fit this network .*use the recipe"):
        replica.load_state_dict(other.state_dict())


def test_weights_that_are_not_numbers_are_found() -> None:
    replica = Replica(model_of_seed(PlainNet), Config(), SINGLE, fused(SINGLE))
    assert replica.is_finite()
    with torch.no_grad():
        next(replica.model.parameters())[0, 0, 0, 0] = math.nan
    assert not replica.is_finite()


def mark_gradients(world: World) -> list[str]:
    """The order of events of one step in which a parameter's gradient is late."""
    events: list[str] = []
    config = Config(optim=SGD, distributed=DistributedConfig(bucket_bytes=64))
    replica = Replica(model_of_seed(PlainNet), config, world, fused(world))
    replica.when_gradients_are_ready = lambda: events.append("ready")
    images, labels = dataset()
    for is_last in (False, True):
        replica.add_gradients(images[:4], KEYS[:4], labels[:4], step_samples=16, is_last=is_last)
        events.append("added")
    return events


def test_only_the_last_micro_batch_is_averaged_and_it_says_when() -> None:
    assert call_on_ranks(2, mark_gradients) == [["added", "ready", "added"]] * 2


def is_freed_while_its_callbacks_are_held(world: World) -> bool:
    """As a thread of gloo holds them until it is done with a reduction, however late that is."""
    held = []
    all_reduce: Any = dist.all_reduce

    def noted(*values: Any, **options: Any) -> Any:
        future = all_reduce(*values, **options).get_future()

        def then(callback: Any) -> Any:
            held.append(callback)
            return future.then(callback)

        return SimpleNamespace(get_future=lambda: SimpleNamespace(then=then))

    dist.all_reduce = noted  # of this process, which ends with the test
    replica = Replica(model_of_seed(PlainNet), Config(optim=SGD), world, fused(world))
    images, labels = dataset()
    replica.add_gradients(images[:4], KEYS[:4], labels[:4], step_samples=8, is_last=True)
    assert held
    found = weakref.ref(replica)
    del replica
    gc.collect()
    return found() is None


def test_no_thread_of_gloo_can_be_the_last_to_free_the_groups() -> None:
    """A process group whose own thread frees it waits for that thread, which ends the process."""
    assert call_on_ranks(2, is_freed_while_its_callbacks_are_held) == [True, True]
