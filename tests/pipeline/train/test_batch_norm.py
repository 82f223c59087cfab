"""Whether a part of a batch is enough for BatchNorm: what is refused, and what is advised."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter

import pytest
import torch
from torch import nn

from pipeline.config.model import ModelConfig
from pipeline.data.order.partition import BatchPlan
from pipeline.model.build import build_model
from pipeline.model.network import Network
from pipeline.train.batch_norm import check_micro_batches, least_values


def plan_of(
    num_samples: int, size: int, replicas: int = 1, accumulated: int = 1, *, drop_last: bool = False
) -> BatchPlan:
    return BatchPlan(
        num_samples=num_samples,
        global_batch_size=size,
        num_replicas=replicas,
        accumulation_steps=accumulated,
        drop_last=drop_last,
    )


class Normalized(Network):
    """BatchNorm on maps of a size that the images decide."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(1))

    def forward(self, images: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        assert not self.training or keys is not None
        found: torch.Tensor = self.layers(images)
        return found


def test_what_batch_norm_sees_is_found_by_looking() -> None:
    network = build_model(ModelConfig(name="alexnet_cifar"), 2, (32, 32))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert least_values(network, (32, 32)) == 1
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert least_values(Normalized(), (3, 3)) == 1
    assert least_values(Normalized(), (4, 5)) == 6


def test_a_network_without_batch_norm_takes_any_part() -> None:
    network = build_model(ModelConfig(name="alexnet_2014"), 2, (224, 224))
    assert least_values(network, (224, 224)) is None
    check_micro_batches(plan_of(65, 16), 100, None)


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        (
            plan_of(65, 16),
            "the epoch's last batch, of 1, leaves some of 1 replicas × 1 accumulation steps one "
            "image, and BatchNorm on maps of 1×1 needs two: use --data.drop_last true, or "
            "--global_batch_size 15 or 17",
        ),
        (plan_of(66, 16, 2), "of 2, leaves some of 2 replicas × 1 accumulation steps one image"),
        (plan_of(67, 16, 2), "of 3, leaves some of 2 replicas × 1 accumulation steps one image"),
        (plan_of(66, 16, 1, 2), "or --global_batch_size 14 or 18, or --accumulation_steps 1"),
        (plan_of(64, 4, 4, drop_last=True), "global_batch_size 4 leaves some of 4 replicas × 1"),
        (plan_of(64, 4, 4, drop_last=True), "needs two: --global_batch_size 8"),
        (plan_of(3, 2, 2, drop_last=True), "needs two: train on fewer ranks"),
    ],
)
def test_a_part_of_one_image_is_refused_with_what_would_do(plan: BatchPlan, sentence: str) -> None:
    with pytest.raises(ValueError, match="needs two") as error:
        check_micro_batches(plan, 100, 1)
    assert sentence in str(error.value)
    check_micro_batches(plan, 100, 2)


def test_a_run_that_ends_before_the_last_batch_may_have_one_image_in_it() -> None:
    plan = plan_of(65, 16)
    assert plan.steps_per_epoch == 5
    check_micro_batches(plan, 4, 1)
    with pytest.raises(ValueError, match="last batch, of 1,"):
        check_micro_batches(plan, 5, 1)


def test_what_is_refused_is_what_has_a_part_of_one_and_what_is_advised_has_none() -> None:
    """Against a count of every rank's every micro-batch; advice is followed."""
    num_refused, followed = 0, Counter[str]()
    for samples, size, replicas, accumulated, drop_last in itertools.product(
        range(6, 30), (4, 6, 8), (1, 2), (1, 2), (False, True)
    ):
        try:
            plan = plan_of(samples, size, replicas, accumulated, drop_last=drop_last)
        except ValueError:
            continue
        if smallest_part(plan) > 1:
            check_micro_batches(plan, 100, 1)
            continue
        with pytest.raises(ValueError, match="needs two: ") as error:
            check_micro_batches(plan, 100, 1)
        num_refused += 1
        advice = str(error.value).partition("needs two: ")[2]
        for sizes in re.findall(r"global_batch_size ([\d or]+)", advice):
            for number in map(int, re.findall(r"\d+", sizes)):
                assert smallest_part(dataclasses.replace(plan, global_batch_size=number)) > 1
                followed["global_batch_size"] += 1
        if "drop_last" in advice:
            assert smallest_part(dataclasses.replace(plan, drop_last=True)) > 1
            followed["drop_last"] += 1
        for number in re.findall(r"accumulation_steps (\d+)", advice):
            changed = dataclasses.replace(plan, accumulation_steps=int(number))
            assert smallest_part(changed) > 1
            followed["accumulation_steps"] += 1
    assert num_refused > 20
    assert len(followed) == 3, followed


def smallest_part(plan: BatchPlan) -> int:
    return min(
        len(plan.positions(step, micro_batch, replica))
        for step in range(plan.steps_per_epoch)
        for micro_batch in range(plan.accumulation_steps)
        for replica in range(plan.num_replicas)
    )
