"""Steps and evaluations on a GPU that is not there, right ones and some with mistakes.

Tensors are torch's fake ones on device `cuda`: they have shapes and dtypes, and no values. So what
mixes devices or dtypes raises, and so does what needs a value on the host. `fake_gpu.cpp` must have
been loaded before torch. Prints a line for each step.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any, Literal, assert_never, get_args

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data_prep.shard_set.manifest import Statistics
from pipeline.config.recipes import RECIPES, recipe_config
from pipeline.config.schema import Config, Precision
from pipeline.data.augment.crop_policy import evaluation_crop_policy, training_crop_policy
from pipeline.data.augment.normalize import build_normalizer
from pipeline.data.augment.preprocess import Augmenter, Viewer
from pipeline.data.batches.loader import training_requests
from pipeline.data.batches.resident import ResidentBatches, ResidentSplit
from pipeline.data.order.partition import BatchPlan
from pipeline.data.readers.sample_index import ReadCost
from pipeline.model.build import build_model, image_size
from pipeline.optim.precision import type_of
from pipeline.optim.replica import Replica
from pipeline.train.log_interval import LogInterval
from pipeline.trained.scores import ranked, scores_of_views
from tests.pipeline.worlds import SINGLE, fused

Mistake = Literal[
    "keys on the CPU",
    "labels on the CPU",
    "bytes as inputs",
    "short labels",
    "item",
    "cpu",
    "bool",
    "nonzero",
]
GPU = torch.device("cuda", 0)
WORLD = dataclasses.replace(SINGLE, device=GPU)
NUM_SAMPLES, BATCH_SIZE, NUM_CLASSES = 16, 4, 10
ONES = (1.0, 1.0, 1.0)
PLAN = BatchPlan(
    num_samples=NUM_SAMPLES,
    global_batch_size=BATCH_SIZE,
    num_replicas=1,
    accumulation_steps=2,
    drop_last=True,
)


class NoWaiting(TorchDispatchMode):
    """Raises where the host waits for the device in a step, and for updates that mix devices."""

    is_in_step = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not func._schema.returns:  # an update in place, which has no fake
            assert devices_of((args, kwargs)) <= {GPU}, f"{func} on several devices"
            return None
        result = func(*args, **kwargs)
        copies = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        if self.is_in_step and copies and len(devices_of((args, kwargs, result))) > 1:
            assert kwargs.get("non_blocking") or args[2:3] == (True,), f"{func} waits"
        return result


def devices_of(tree: object) -> set[torch.device]:
    return {one.device for one in tree_leaves(tree) if isinstance(one, torch.Tensor)}


class _Event:
    """In place of `torch.cuda.Event`, which needs a GPU."""

    def __init__(self, **_: bool) -> None: ...

    def record(self) -> None: ...


def pretend() -> None:
    """torch finds a GPU; what is pinned is where it was."""
    unknown: Any = torch
    unknown.cuda.is_available = lambda: True
    unknown.cuda.is_bf16_supported = lambda **_: True
    unknown.cuda.current_device = lambda: 0
    unknown.cuda.get_device_capability = lambda _=None: (9, 0)
    unknown.cuda.Event = _Event
    unknown.Tensor.pin_memory = lambda tensor: tensor


def train_and_evaluate(
    config: Config, *, is_planar: bool, mistake: Mistake | None, mode: NoWaiting
) -> None:
    side = 256 if config.augment.crop_pixels else image_size(config.model.name)
    shape = (3 * side // 2, side) if is_planar else (side, side, 3)
    statistics = Statistics(
        num_images=NUM_SAMPLES, mean=ONES, std=ONES, pca_stds=ONES, pca_vectors=(ONES, ONES, ONES)
    )
    mean_image = np.zeros((side, side, 3), np.float32)
    normalizer = build_normalizer(config.augment, statistics, mean_image, GPU)
    augmenter = Augmenter(
        config.augment, 0, statistics, normalizer, type_of(config.resolved_precision)
    )
    network_side = image_size(config.model.name)
    model = build_model(config.model, NUM_CLASSES, (network_side, network_side))
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # torch would compute with a constant
            layer.num_batches_tracked = torch.zeros((), dtype=torch.int64)
    model.freeze(config.init.freeze)
    mesh = fused(WORLD)
    replica, interval = Replica(model, config, WORLD, mesh), LogInterval(WORLD, mesh)
    split = ResidentSplit(
        images=torch.empty((NUM_SAMPLES, *shape), dtype=torch.uint8, device=GPU),
        edges=np.array([0, NUM_SAMPLES]),
        labels=np.arange(NUM_SAMPLES) % NUM_CLASSES,
        damage=ReadCost(),
    )
    policy = training_crop_policy(config.augment, (side, side), 0)
    batches = ResidentBatches(split, policy, training_requests(PLAN, 0, 0, 2), WORLD, [0])
    for number, batch in enumerate(batches):
        # The first step makes what the others have.
        mode.is_in_step = number >= PLAN.accumulation_steps
        is_last = number % PLAN.accumulation_steps == PLAN.accumulation_steps - 1
        images, labels = batch.to(GPU)
        keys = augmenter.dropout_keys(batch.samples, 0, GPU)
        inputs = augmenter(images, batch.samples, 0, batch.crop_windows)
        inputs, keys, labels = planted(mistake, inputs, keys, labels)
        loss, logits = replica.add_gradients(
            inputs, keys, labels, step_samples=BATCH_SIZE, is_last=is_last
        )
        interval.note_predictions(loss, logits, labels)
        if is_last:
            replica.update(wants_norm=True)
    evaluate(
        model,
        split.images[:BATCH_SIZE],
        Viewer(
            config.augment,
            config.evaluation.views,
            evaluation_crop_policy(config.augment, (side, side)).output_size,
            normalizer,
        ),
    )


def evaluate(model: torch.nn.Module, images: torch.Tensor, viewer: Viewer) -> None:
    model.eval()
    with torch.inference_mode():
        scores = scores_of_views([model(view) for view in viewer(images)])
        scores.gather(1, ranked(scores)[:, :5]).exp().float()
        labels = torch.zeros(len(images), dtype=torch.int64, device=GPU)
        F.nll_loss(scores, labels, reduction="none").float()


def planted(
    mistake: Mistake | None, inputs: torch.Tensor, keys: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The operands of a step, with a mistake in them or on the way."""
    match mistake:
        case None:
            pass
        case "keys on the CPU":
            keys = torch.zeros(len(keys), dtype=torch.int64)
        case "labels on the CPU":
            labels = torch.zeros(len(labels), dtype=torch.int64)
        case "bytes as inputs":
            inputs = inputs.to(torch.uint8)
        case "short labels":
            labels = labels.to(torch.int16)
        case "item":
            labels.sum().item()
        case "cpu":
            labels.cpu()
        case "bool":
            assert labels.sum() >= 0
        case "nonzero":
            labels.nonzero()
        case unknown:
            assert_never(unknown)
    return inputs, keys, labels


def run(recipe: str, precision: Precision, *, is_planar: bool, mistake: Mistake | None) -> None:
    config = dataclasses.replace(recipe_config(recipe), precision=precision, compile="off")
    with FakeTensorMode(allow_non_fake_inputs=True) as fakes, NoWaiting() as mode:  # type: ignore[no-untyped-call]
        fakes.fake_tensor_converter.set_tensor_memo = lambda *_: None  # type: ignore[method-assign]
        train_and_evaluate(config, is_planar=is_planar, mistake=mistake, mode=mode)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def main() -> None:
    pretend()
    for mistake in get_args(Mistake):
        try:
            run("alexnet_2012", "bf16", is_planar=True, mistake=mistake)
        except Exception as error:
            say(f"{mistake}: found by {type(error).__name__}")
        else:
            say(f"{mistake}: not found")
    for recipe in RECIPES:
        for precision in get_args(Precision):
            for is_planar in (False, True):
                run(recipe, precision, is_planar=is_planar, mistake=None)
                say(f"{recipe} {precision} {'planes' if is_planar else 'pixels'}: right")


if __name__ == "__main__":
    main()
