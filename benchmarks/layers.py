"""The training step of the 2012 network on a CPU, layer by layer, beside what products take alone.

    python -m benchmarks.layers [--rounds 7] [--json PATH]

A step of 64 images on all cores, in the precision that `auto` is here, from uint8 crops to changed
weights, under torch's profiler: the time of each layer forward and backward, its share of the step,
and the memory that its outputs take. The limit of a convolution or a linear layer is the fastest
way that torch has to oneDNN's convolution, or to a product of matrices by MKL or oneDNN, of exactly
these shapes, called alone: in each layout of memory, gradients of inputs and of weights apart. A
step and all of these calls take turns, n rounds, and ratios are taken round by round.

Held to AVX2, as on the processors of docs/benchmarks.md:

    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
        NUMBA_CPU_NAME=znver3 python -m benchmarks.layers
"""

from __future__ import annotations

import functools
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile

from benchmarks.measurement import parser, report, spread
from benchmarks.products import PRODUCTS, Layer, products, seconds_of
from benchmarks.step import LOCAL_BATCH_SIZE, our_config
from data_prep.shard_set.manifest import Statistics
from pipeline.config.schema import DistributedConfig
from pipeline.data.open import Augmenter, Normalizer
from pipeline.model.build import build_model
from pipeline.optim.precision import type_of
from pipeline.optim.replica import Replica
from pipeline.ranks.connect import connect
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.mesh import build_mesh

STATISTICS = Statistics(
    num_images=1,
    mean=(120.0, 115.0, 100.0),
    std=(60.0, 60.0, 60.0),
    pca_stds=(20.0, 37.0, 120.0),
    pca_vectors=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
)

Row = tuple[str, str]
"""A layer, and `forward` or `backward`."""

SMALL = ("augmentation", "drop6", "drop7", "loss", "optimizer", "gradients")
"""What is to take less than a tenth of a step together."""

OTHERS = {
    "aten::pad": "padding",
    "aten::relu": "ReLU",
    "aten::cross_entropy_loss": "loss",
    "torch::autograd::AccumulateGrad": "gradients",
}
"""Operations that are in no layer of their own."""

_NODE = "autograd::engine::evaluate_function: "


class Step:
    """A step as training takes it, from crops that are ready."""

    def __init__(self) -> None:
        self.config = our_config("code")
        self.dtype = type_of(self.config.resolved_precision)
        with connect(LaunchEnvironment(), DistributedConfig(device="cpu")) as world:
            model = build_model(self.config.model, 1000, (224, 224))
            self._replica = Replica(model, self.config, world, build_mesh(world, "fused", 60))
            means = np.array(STATISTICS.mean), np.array(STATISTICS.std)
            normalizer = Normalizer(*means, world.device)
        self._augmenter = Augmenter(self.config.augment, 0, STATISTICS, normalizer, self.dtype)
        size = (LOCAL_BATCH_SIZE, 224, 224, 3)
        generator = torch.Generator().manual_seed(0)
        self._crops = torch.randint(256, size, dtype=torch.uint8, generator=generator)
        self._labels = torch.randint(1000, size[:1], generator=generator)
        self._samples = np.arange(LOCAL_BATCH_SIZE)
        self.layers: dict[str, Layer] = {}
        for name, layer in model.named_children():
            layer.register_forward_pre_hook(functools.partial(self._enter, name))
            layer.register_forward_hook(functools.partial(self._leave, name))

    def _enter(self, name: str, *_: Any) -> None:
        self._open = record_function(name)
        self._open.__enter__()

    def _leave(self, name: str, layer: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        self._open.__exit__(None, None, None)
        self.layers[name] = Layer(layer, inputs[0].shape, output.shape)

    def __call__(self) -> None:
        with record_function("augmentation"):
            inputs = self._augmenter(self._crops, self._samples, 0)
            keys = self._augmenter.dropout_keys(self._samples, 0, inputs.device)
        count = LOCAL_BATCH_SIZE
        self._replica.add_gradients(inputs, keys, self._labels, step_samples=count, is_last=True)
        with record_function("optimizer"):
            self._replica.update()


def profiled(step: Callable[[], None]) -> tuple[dict[Row, float], dict[Row, int]]:
    """Seconds of each row and of the `step`; and bytes that the forward rows leave in use."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        begin = time.perf_counter()
        step()
        whole = time.perf_counter() - begin
    seconds, used = defaultdict[Row, float](float), defaultdict[Row, int](int)
    row_of: dict[int, str] = {}
    for event in found.events() or ():
        if event.cpu_parent is not None or event.name == "[memory]":
            continue
        if event.name.startswith(_NODE):
            name = event.name.removeprefix(_NODE)
            row = OTHERS.get(name) or row_of.get(_number(event), "everything else"), "backward"
        else:
            row = _row_of_forward(event.name), "forward"
            used[row] += event.cpu_memory_usage
            row_of |= dict.fromkeys(_numbers(event), row[0])
        seconds[row] += event.cpu_time_total / 1e6
    seconds["between operations", ""] = whole - sum(seconds.values())
    seconds["step", ""] = whole
    return dict(seconds), dict(used)


def _row_of_forward(name: str) -> str:
    if name.startswith(("conv", "pool", "fc", "drop", "augmentation", "optimizer")):
        return name
    return OTHERS.get(name, "everything else")


def _numbers(event: Any) -> Iterator[int]:
    """Those of the nodes of the backward pass that an event and what it called have made."""
    yield event.sequence_nr
    for child in event.cpu_children:
        yield from _numbers(child)


def _number(event: Any) -> int:
    return int(max(one.sequence_nr for one in (event, *event.cpu_children)))


def figures(rounds: int) -> dict[str, Any]:
    step = Step()
    step()
    calls = products(step.layers, step.dtype)
    seconds_of(calls)
    steps, alone = [], []
    for _ in range(rounds):
        seconds, used = profiled(step)
        steps.append(seconds)
        alone.append(seconds_of(calls))
    ways = {
        what: min(found, key=lambda way: statistics.median(one[what][way] for one in alone))
        for what, found in calls.items()
    }

    def limit(one: Any, row: Row) -> float:
        parts = ("forward",) if row[1] == "forward" else ("inputs", "weights")
        products = [(row[0], part) for part in parts]
        return sum(float(one[what][ways[what]]) for what in products if what in ways)

    return {
        "local_batch_size": LOCAL_BATCH_SIZE,
        "threads": torch.get_num_threads(),
        "precision": step.config.resolved_precision,
        "images_per_second": spread([LOCAL_BATCH_SIZE / one["step", ""] for one in steps], 1),
        "largest_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
        "rows": _table(steps, alone, limit, used),
        "the fastest ways alone": {" ".join(what): way for what, way in ways.items()},
        **_sums(steps, alone, limit),
    }


Limit = Callable[[Any, Row], float]


def _table(
    steps: Sequence[dict[Row, float]], alone: Sequence[Any], limit: Limit, used: dict[Row, int]
) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for row in sorted({row for one in steps for row in one}):
        values = [one.get(row, 0.0) for one in steps]
        shares = [value / one["step", ""] for value, one in zip(values, steps, strict=True)]
        said: dict[str, Any] = {
            "milliseconds": spread([1e3 * value for value in values], 1),
            "share": spread(shares),
        }
        if used.get(row):
            said["bytes_kept"] = used[row]
        rows[" ".join(row).strip()] = said
        if row[0] in PRODUCTS:
            limits_ = [limit(one, row) for one in alone]
            said["milliseconds alone"] = spread([1e3 * value for value in limits_], 1)
            pairs = zip(limits_, values, strict=True)
            said["of its limit"] = spread([a / b for a, b in pairs], 2)
    return rows


def _sums(steps: Sequence[dict[Row, float]], alone: Sequence[Any], limit: Limit) -> dict[str, Any]:
    rows = [(name, way) for name in PRODUCTS for way in ("forward", "backward")]
    bounds = [sum(limit(one, row) for row in rows) for one in alone]
    products = [sum(one[row] for row in rows) for one in steps]
    small = [sum(value for row, value in one.items() if row[0] in SMALL) for one in steps]
    whole = [one["step", ""] for one in steps]

    def ratio(ones: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
        return spread([a / b for a, b in zip(ones, others, strict=True)], 3)

    return {
        "all products of their limit": ratio(bounds, products),
        "the whole step of that limit": ratio(bounds, whole),
        f"share of {', '.join(SMALL)}": ratio(small, whole),
    }


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--rounds", type=int, default=7)
    options = options_parser.parse_args()
    claim = (
        "on a CPU a step of the 2012 network takes at least 0.7 of what its products allow, and "
        "dropout, loss, augmentation, optimizer and gradients less than a tenth of it"
    )
    report({"claim": claim, **figures(options.rounds)}, options.json)


if __name__ == "__main__":
    main()
