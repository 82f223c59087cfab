"""The training step of the 2012 network against plain PyTorch, and its split layout.

    python -m benchmarks.step [--rounds 7] [--json PATH]

Images a second of batch 64 on all cores, side by side: the blog's PyTorch network as written (fp32,
NCHW, `nn.LocalResponseNorm`), the same with the groups of 2012, ours without its response norm, and
ours; both of ours in the precision that `auto` is here, and channels-last. Each round takes one
step of each, and ratios are taken round by round. Our process keeps the memory that it frees
(`pipeline.ranks.memory`), so the blog's networks have one of their own; its first one steps in
ours, too, which says what that alone is worth. Steps on a GPU are measured by `benchmarks.gpu`.

Then the split layout against the fused one, `benchmarks.columns`.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks import columns
from benchmarks.measurement import parser, report, spread
from benchmarks.rivals.blog_alexnet import plain_step
from pipeline.config.model import ModelConfig
from pipeline.config.recipes import alexnet_fast
from pipeline.config.schema import Config, DistributedConfig
from pipeline.model.build import build_model
from pipeline.optim.precision import arithmetic_of, resolve
from pipeline.optim.replica import Replica
from pipeline.ranks.connect import connect
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.mesh import build_mesh

LOCAL_BATCH_SIZE = 64
BLOG, GROUPED = "blog: fp32, NCHW, torch's LRN", "the same, grouped"
KEEPING = "the blog's, in a process that keeps freed memory"
WITHOUT, OURS = "ours without response norm", "ours"

Step = Callable[[], None]


def our_config(response_norm: Any) -> Config:
    """That of `alexnet_fast` on this processor."""
    model_config = ModelConfig(
        name="alexnet_2012", response_norm=response_norm, dropout_form="original"
    )
    config = dataclasses.replace(
        alexnet_fast(), model=model_config, global_batch_size=LOCAL_BATCH_SIZE
    )
    return resolve(config, None, [arithmetic_of(torch.device("cpu"))])


def our_step(images: torch.Tensor, labels: torch.Tensor, config: Config) -> Step:
    """A step as training takes it, from inputs that are ready."""
    with connect(LaunchEnvironment(), DistributedConfig(device="cpu")) as world:
        model = build_model(config.model, 1000, (224, 224))
        replica = Replica(model, config, world, build_mesh(world, "fused", 60))
    images = images.contiguous(memory_format=torch.channels_last)
    keys = torch.arange(len(images))

    def step() -> None:
        replica.add_gradients(images, keys, labels, step_samples=len(images), is_last=True)
        replica.update()

    return step


def _inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Images N×3×227×227 and labels."""
    generator = torch.Generator().manual_seed(0)
    large = 60 * torch.randn(LOCAL_BATCH_SIZE, 3, 227, 227, generator=generator)
    return large, torch.randint(1000, (LOCAL_BATCH_SIZE,), generator=generator)


def _take_plain_steps(asked: Connection) -> None:
    """In a process as Python starts it: the steps whose names come, until None does."""
    steps = {BLOG: plain_step(*_inputs(), groups=1), GROUPED: plain_step(*_inputs(), groups=2)}
    while (name := asked.recv()) is not None:
        steps[name]()
        asked.send(name)


@contextmanager
def cpu_steps() -> Iterator[dict[str, Step]]:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_take_plain_steps, args=(theirs,))
    process.start()
    theirs.close()

    def ask(name: str) -> None:
        ours.send(name)
        ours.recv()

    large, labels = _inputs()
    images = large[:, :, :224, :224]
    yield {
        BLOG: functools.partial(ask, BLOG),
        GROUPED: functools.partial(ask, GROUPED),
        WITHOUT: our_step(images, labels, our_config("none")),
        OURS: our_step(images, labels, our_config("code")),
        KEEPING: plain_step(large, labels, groups=1),
    }
    ours.send(None)
    process.join()


def seconds_by_round(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Each step once to warm up, then once a round, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            if number > 0:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def cpu_figures(rounds: int) -> dict[str, Any]:
    with cpu_steps() as steps:
        seconds = seconds_by_round(steps, rounds)
    del steps
    gc.collect()

    def ratios(one: str, other: str) -> list[float]:
        return [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]

    return {
        "local_batch_size": LOCAL_BATCH_SIZE,
        "threads": torch.get_num_threads(),
        "precision of ours": our_config("code").resolved_precision,
        "images_per_second": {
            name: spread([LOCAL_BATCH_SIZE / one for one in values], 1)
            for name, values in seconds.items()
        },
        "ours against the blog's": spread(ratios(BLOG, OURS), 2),
        "the same, where that keeps freed memory": spread(ratios(KEEPING, OURS), 2),
        "cost of the response norm": spread([r - 1 for r in ratios(OURS, WITHOUT)]),
    }


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--rounds", type=int, default=7)
    options = options_parser.parse_args()
    figures = {"cpu": cpu_figures(options.rounds)}
    claim = (
        "a step of the 2012 network: at least 3.5 times the blog's, its response norm below 12 %"
    )
    report({"claim": claim, **figures, "columns": columns.figures()}, options.json)


if __name__ == "__main__":
    main()
