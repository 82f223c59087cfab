"""Loss scaling: steps that overflow are left out, counted and forgotten."""

from __future__ import annotations

import copy
import math
from typing import NoReturn, get_args

import pytest
import torch
from torch import nn

from pipeline.config.model import ModelConfig, ModelName
from pipeline.config.optim import OptimConfig
from pipeline.config.schema import Config, Precision
from pipeline.model.build import empty_model
from pipeline.model.network import Network
from pipeline.optim.precision import apply_gradients, autocast, loss_scaler, type_of
from pipeline.optim.replica import Replica
from pipeline.ranks.mesh import build_mesh
from pipeline.ranks.world import World
from pipeline.train.progress import Progress
from tests.pipeline.rank_jobs import call_on_ranks
from tests.pipeline.worlds import SINGLE, fused

CPU = torch.device("cpu")
OPTIMIZERS = [
    OptimConfig(name="sgd", learning_rate=0.1, momentum=0.9),
    OptimConfig(name="sgd", learning_rate=0.1, momentum=0.0),
    OptimConfig(name="adam", learning_rate=0.1, epsilon=1e-3),
    OptimConfig(name="sgd", learning_rate=0.1, momentum=0.9, clip_norm=0.5),
]
IDS = ["momentum", "plain sgd", "adam", "clipped"]


class Product(Network):
    """N×4 to N×2 logits; without a bias, to have one parameter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dense = nn.Linear(4, 2, bias=False)

    @property
    def first_convolution(self) -> nn.Conv2d:
        return nn.Conv2d(1, 1, 1)  # none of this network's

    def forward(self, images: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        logits: torch.Tensor = self.dense(images)
        return logits


def replica_of(optim: OptimConfig, precision: str) -> Replica:
    config = Config(optim=optim, precision=precision)  # type: ignore[arg-type]
    return Replica(Product(), config, SINGLE, fused(SINGLE))


def step(
    replica: Replica, *, overflow: bool = False, scale: float = 1.0
) -> tuple[float | None, bool]:
    """One update from the same batch always, but for its `scale`.

    `overflow` spoils one element of its gradient.
    """
    inputs = torch.tensor([[1.0, -2.0, 0.5, 1.0], [0.25, 1.0, -1.0, 2.0]]) * scale
    labels = torch.tensor([0, 1])
    replica.add_gradients(inputs, labels, labels, step_samples=2, is_last=True)
    weight = next(replica.model.parameters())
    assert weight.grad is not None
    if overflow:
        weight.grad[0, 0] = math.inf
    norm, outcome = replica.update()
    assert weight.grad is None, "gradients are cleared, after a skipped step too"
    return None if norm is None else float(norm), outcome.was_skipped()


def weights(replica: Replica) -> torch.Tensor:
    return next(replica.model.parameters()).detach().clone()


@pytest.mark.parametrize("optim", OPTIMIZERS, ids=IDS)
def test_an_overflow_leaves_no_trace_but_a_lower_scale(
    optim: OptimConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the very first step too, in which an optimizer makes its state in fresh memory."""
    monkeypatch.setattr(torch, "empty_like", lambda like: torch.full_like(like, math.nan))
    clean, spoiled = replica_of(optim, "fp16"), replica_of(optim, "fp16")
    start = weights(spoiled)
    assert spoiled.loss_scale == 65536
    assert step(spoiled, overflow=True)[1]
    assert spoiled.loss_scale == 32768
    assert torch.equal(weights(spoiled), start)
    for _ in range(3):
        assert not step(clean)[1]
        assert not step(spoiled)[1]
        torch.testing.assert_close(weights(spoiled), weights(clean), rtol=1e-3, atol=1e-4)
        assert step(spoiled, overflow=True)[1]
        torch.testing.assert_close(weights(spoiled), weights(clean), rtol=1e-3, atol=1e-4)
    assert spoiled.loss_scale == 4096


class Normalized(Product):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, images: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(self.norm(images))


def test_an_overflow_on_the_way_forward_leaves_no_trace_in_moments() -> None:
    config = Config(optim=OPTIMIZERS[0], precision="fp16")
    first, second = (Replica(Normalized(), config, SINGLE, fused(SINGLE)) for _ in range(2))
    step(first)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for replica in (first, second):
        before = {name: value.clone() for name, value in replica.model.state_dict().items()}
        assert step(replica, scale=math.inf)[1]
        assert replica.is_finite()
        for name, value in replica.model.state_dict().items():
            assert torch.equal(value, before[name]), name


def test_moments_that_are_no_numbers_are_found() -> None:
    replica = Replica(Normalized(), Config(), SINGLE, fused(SINGLE))
    assert replica.is_finite()
    step(replica, scale=math.inf)
    with torch.no_grad():
        for parameter in replica.model.parameters():
            parameter.zero_()
    assert not replica.is_finite()


def test_skipped_steps_are_counted_and_do_not_move_the_schedule() -> None:
    replica, progress = replica_of(OPTIMIZERS[0], "fp16"), Progress()
    for overflow in (True, False, True):
        progress.step += 1
        progress.settle_step(skipped=step(replica, overflow=overflow)[1])
    assert (progress.step, progress.updates, progress.skipped_steps) == (3, 1, 2)


@pytest.mark.parametrize("optim", OPTIMIZERS, ids=IDS)
def test_the_scale_survives_a_resume(optim: OptimConfig) -> None:
    first = replica_of(optim, "fp16")
    for overflow in (True, False, True):
        step(first, overflow=overflow)
    second = replica_of(optim, "fp16")
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.loss_scale == first.loss_scale == 16384
    step(first)
    step(second)
    assert torch.equal(weights(first), weights(second))
    assert first.state_dict()["scaler"] == second.state_dict()["scaler"]


def test_gradients_are_clipped_at_their_true_size() -> None:
    """Not at the scaled one: the norm is the one of fp32, and so is the update."""
    optim = OptimConfig(name="sgd", learning_rate=0.1, momentum=0.0, clip_norm=0.25)
    scaled, plain = replica_of(optim, "fp16"), replica_of(optim, "fp32")
    start = weights(plain)
    norm, _ = step(scaled)
    expected, _ = step(plain)
    assert expected is not None
    assert expected > 0.25
    assert norm == pytest.approx(expected, rel=1e-2)
    assert float((weights(plain) - start).norm()) == pytest.approx(0.1 * 0.25, rel=1e-4)
    torch.testing.assert_close(weights(scaled), weights(plain), rtol=1e-2, atol=1e-4)


def test_without_fp16_nothing_is_scaled_or_skipped() -> None:
    for precision in ("fp32", "bf16"):
        replica = replica_of(OPTIMIZERS[0], precision)
        assert replica.loss_scale is None
        assert step(replica, overflow=True) == (None, False)


def test_weights_stay_fp32_and_layers_do_not() -> None:
    for precision, kind in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        model = Product()
        with autocast(precision, CPU):  # type: ignore[arg-type]
            assert model(torch.ones(1, 4)).dtype == kind
        assert model.dense.weight.dtype == torch.float32
    with autocast("fp32", CPU):
        assert Product()(torch.ones(1, 4)).dtype == torch.float32


def test_the_norm_of_a_skipped_step_is_reported_as_it_is() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer, scaler = torch.optim.SGD([parameter], lr=1.0), loss_scaler("fp16", CPU, None)
    scaler.scale(parameter.sum()).backward()
    assert parameter.grad is not None
    parameter.grad[1] = math.inf
    norm, outcome = apply_gradients(optimizer, scaler, [parameter], 1.0, None)
    assert outcome.was_skipped()
    assert norm is not None
    assert math.isinf(norm)
    assert torch.equal(parameter, torch.ones(3))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_norm_is_reported_where_it_is_wanted_and_changes_nothing(precision: Precision) -> None:
    optim = OptimConfig(name="sgd", learning_rate=0.1, momentum=0.9)
    asked, other = replica_of(optim, precision), replica_of(optim, precision)
    labels = torch.tensor([0, 1])
    for replica in (asked, other):
        replica.add_gradients(torch.ones(2, 4), labels, labels, step_samples=2, is_last=True)
    gradient = next(asked.model.parameters()).grad
    assert gradient is not None
    expected = float(gradient.norm()) / (asked.loss_scale or 1)
    norm, _ = asked.update(wants_norm=True)
    assert norm is not None
    assert float(norm) == pytest.approx(expected, rel=1e-6)
    assert expected > 0
    assert other.update()[0] is None
    assert torch.equal(weights(asked), weights(other))


def steps_of_parts(
    world: World, clip_norm: float | None, overflows: list[tuple[int, ...]]
) -> list[tuple[bool, float | None]]:
    """Steps of two ranks that hold parts of one replica.

    In each the gradients of some ranks' parts overflow.
    """
    mesh = build_mesh(world, "split", timeout_seconds=30)
    optim = OptimConfig(name="sgd", learning_rate=0.1, clip_norm=clip_norm)
    replica = Replica(Product(), Config(optim=optim, precision="fp16"), world, mesh)
    found = []
    for spoiled_ranks in overflows:
        start = weights(replica)
        _, skipped = step(replica, overflow=world.rank in spoiled_ranks)
        found.append((skipped, replica.loss_scale))
        assert torch.equal(weights(replica), start) == skipped
        assert weights(replica).isfinite().all()
    return found


@pytest.mark.parametrize("clip_norm", [None, 0.25])
def test_the_parts_of_a_replica_skip_together(clip_norm: float | None) -> None:
    overflows: list[tuple[int, ...]] = [(), (0,), (1,), (0, 1), ()]
    first, second = call_on_ranks(2, steps_of_parts, clip_norm, overflows)
    scales = (65536, 32768, 16384, 8192, 8192)
    assert first == second == list(zip((False, True, True, True, False), scales, strict=True))


def norms_of_parts(world: World) -> tuple[float | None, float]:
    """The norm that is clipped to, and this rank's own after it."""
    mesh = build_mesh(world, "split", timeout_seconds=30)
    optim = OptimConfig(name="sgd", learning_rate=1.0, momentum=0.0, clip_norm=0.25)
    replica = Replica(Product(), Config(optim=optim), world, mesh)
    with torch.no_grad():
        next(replica.model.parameters()).mul_(1 + world.rank)
    start = weights(replica)
    norm, _ = step(replica)
    return norm, float((weights(replica) - start).norm())


def test_a_replica_in_parts_is_clipped_by_the_norm_of_all_its_parts() -> None:
    (norm, first), (norm_there, second) = call_on_ranks(2, norms_of_parts)
    assert norm == norm_there
    assert norm is not None
    assert norm > 0.25
    assert math.hypot(first, second) == pytest.approx(0.25, rel=1e-4)
    assert first != pytest.approx(second, rel=1e-2)


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_an_update_asks_the_device_for_nothing(
    clip_norm: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host learns later whether it was skipped, and does not wait meanwhile."""
    optim = OptimConfig(name="sgd", learning_rate=0.1, momentum=0.9, clip_norm=clip_norm)
    replica = replica_of(optim, "fp16")
    step(replica)
    labels = torch.tensor([0, 1])
    replica.add_gradients(torch.ones(2, 4), labels, labels, step_samples=2, is_last=True)

    def wait(*_: object) -> NoReturn:
        raise AssertionError("this waits for the device")

    with monkeypatch.context() as patched:
        patched.setattr(torch.amp.GradScaler, "get_scale", wait)
        for name in ("item", "__bool__", "__float__", "tolist"):
            patched.setattr(torch.Tensor, name, wait)
        _, outcome = replica.update(wants_norm=True)
    assert not outcome.was_skipped()


class Reached(Exception):
    """The first convolution is done."""


@pytest.mark.parametrize("name", get_args(ModelName))
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_network_computes_the_same_of_images_that_are_cast_before_it(
    name: ModelName, precision: Precision
) -> None:
    """Its first layer would cast them itself: the data does it, where it makes their numbers."""
    network = empty_model(ModelConfig(name=name), 10).to_empty(device=CPU)
    first, outputs = network.first_convolution, list[torch.Tensor]()
    for parameter in first.parameters():
        nn.init.normal_(parameter)

    def keep(_layer: nn.Module, _inputs: object, output: torch.Tensor) -> NoReturn:
        outputs.append(output)
        raise Reached

    first.register_forward_hook(keep)
    size = network.image_size
    images = 60 * torch.randn(2, 3, size, size).to(memory_format=torch.channels_last)
    for one in (images, images.to(type_of(precision))):
        with torch.no_grad(), autocast(precision, CPU), pytest.raises(Reached):
            network(one)
    assert torch.equal(*outputs)
    assert outputs[0].dtype == type_of(precision)
