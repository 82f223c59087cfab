"""What was tuned on one processor, measured on this one: precision, layout, kernels, batch size.

    python -m benchmarks.processor [--rounds 3] [--json PATH]

CPU time of training steps on one thread, which a busy machine does not distort, as images for each
second of it: one step of every variant a round, in turn. On a processor with AVX-512 and bf16 these
variables show what others do, and the result says that they were set:

    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
        NUMBA_CPU_NAME=znver3 python -m benchmarks.processor
    ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI python -m benchmarks.processor
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from benchmarks.measurement import parser, report, spread
from pipeline.config.recipes import recipe_config
from pipeline.config.schema import Config, DistributedConfig, Precision
from pipeline.model import response_norm
from pipeline.model.build import build_model
from pipeline.optim.precision import arithmetic_of, fastest
from pipeline.optim.replica import Replica
from pipeline.ranks.connect import connect
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.mesh import build_mesh


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    recipe: str
    pixels: int
    num_images: int
    precision: Precision = "fp32"
    is_channels_last: bool = True
    has_kernels: bool = True

    @property
    def config(self) -> Config:
        return dataclasses.replace(
            recipe_config(self.recipe), precision=self.precision, global_batch_size=self.num_images
        )


CIFAR = Case(recipe="cifar10", pixels=32, num_images=128)
LARGE = Case(recipe="alexnet_fast", pixels=224, num_images=16)

CASES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "fp32, not channels-last": {"is_channels_last": False},
}
"""Of both networks."""

CASES_OF_CIFAR: dict[str, dict[str, Any]] = {
    "fp16": {"precision": "fp16"},
    "fp32, batch 64": {"num_images": 64},
    "fp32, batch 256": {"num_images": 256},
}
CASES_OF_LARGE: dict[str, dict[str, Any]] = {
    "fp32, response norm without numba": {"has_kernels": False}
}


def make_step(case: Case) -> Callable[[], None]:
    """A step as training takes it, from inputs that are ready."""
    config, size = case.config, (case.pixels, case.pixels)
    with connect(LaunchEnvironment(), DistributedConfig(device="cpu")) as world:
        network = build_model(config.model, 1000, size)
        replica = Replica(network, config, world, build_mesh(world, "fused", 60))
    layout = torch.channels_last if case.is_channels_last else torch.contiguous_format
    replica.model.to(memory_format=layout)  # type: ignore[call-overload]
    images = torch.randn(case.num_images, 3, *size).contiguous(memory_format=layout)
    labels = torch.randint(1000, (case.num_images,))
    keys = torch.arange(case.num_images)
    kernels = {} if case.has_kernels else {"cpu": False}

    def step() -> None:
        with mock.patch.dict(response_norm._KERNELS_FOR, kernels):
            replica.add_gradients(images, keys, labels, step_samples=case.num_images, is_last=True)
            replica.update()

    return step


def figures(cases: dict[str, Case], rounds: int) -> dict[str, Any]:
    """Images for each second of CPU time, of every case."""
    steps = {name: make_step(case) for name, case in cases.items()}
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, step in steps.items():
            begin = time.process_time()
            step()
            if number > 0:
                rates[name].append(cases[name].num_images / (time.process_time() - begin))
    return {name: spread(values, 1) for name, values in rates.items()}


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--rounds", type=int, default=3)
    options = options_parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "claim": "the defaults are right on this processor",
        "auto": fastest([arithmetic_of(torch.device("cpu"))]),
    }
    for base, others in ((CIFAR, CASES_OF_CIFAR), (LARGE, CASES_OF_LARGE)):
        cases = {
            name: dataclasses.replace(base, **changes)
            for name, changes in {**CASES, **others}.items()
        }
        found[f"{base.recipe}, images a CPU second"] = figures(cases, options.rounds)
    report(found, options.json)


if __name__ == "__main__":
    main()
