"""The parts of the command, the most important first; each runs in a process of its own."""

from __future__ import annotations

import math
import os
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import kernels, ranks, steps, training
from benchmarks.gpu.results import LeftOut, Results, failed, left_out
from benchmarks.gpu.scale import DRY_RUN, ON_GPU, Scale
from tests.pipeline import gpu_checks


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What the command line asks for, where it goes, and until when."""

    dry_run: bool
    cifar10: Path | None
    images: Path | None
    folder: Path
    """Where parts may write."""
    found: Path
    """The folder of their figures and logs."""
    deadline: float = math.inf
    """When the part is ended, by `time.monotonic`."""

    @property
    def scale(self) -> Scale:
        return DRY_RUN if self.dry_run else ON_GPU


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    run: Callable[[Asked, Results], None]
    weight: int
    """Its share of the time that is left is this by the sum of those that are still to run."""
    num_gpus: int = 1
    so_far: Callable[[Path, dict[str, Any]], dict[str, Any]] | None = None
    """What more is in the part's folder where it was ended, beside its figures."""


_LONGEST_CHECK_SECONDS = 4.0
"""About: one that has kernels compiled."""


def _tests(asked: Asked, results: Results) -> None:
    """The checks of the tests that are marked gpu."""
    late, longest = 0, _LONGEST_CHECK_SECONDS
    for name, check in gpu_checks.checks(asked.scale.device).items():
        begin = time.monotonic()
        if begin + longest > asked.deadline:
            results.add(name, left_out("the time of this part was over"))
            late += 1
            continue
        try:
            check()
            results.add(name, "passed")
        except (ModuleNotFoundError, FileNotFoundError) as error:
            results.add(name, left_out(error))
        except Exception as error:
            results.add(name, failed(error))
        longest = max(longest, time.monotonic() - begin)
    count = len(results.figures)
    if wrong := [name for name, figure in results.figures.items() if "failed" in figure]:
        raise AssertionError(f"{len(wrong)} of {count} checks failed: {wrong[0]}")
    if late:
        raise LeftOut(f"the last {late} of {count} checks: the time of this part was over")


PARTS: Mapping[str, Part] = {
    "tests": Part(run=_tests, weight=12),
    "steps": Part(run=lambda asked, results: steps.table(asked.scale, results), weight=34),
    "kernels": Part(run=lambda asked, results: kernels.measure(asked.scale, results), weight=26),
    "resident": Part(
        run=lambda asked, results: training.resident(asked.scale, asked.folder, results),
        weight=32,
        so_far=training.end_to_end,
    ),
    "cifar10": Part(
        run=lambda asked, results: training.cifar10(
            asked.scale, asked.cifar10, asked.folder, results
        ),
        weight=18,
    ),
    "feeding": Part(
        run=lambda asked, results: training.feeding(
            asked.scale, asked.images, asked.folder, results
        ),
        weight=26,
    ),
    "ranks": Part(
        run=lambda asked, results: ranks.measure(asked.scale, asked.folder, results),
        weight=20,
        num_gpus=2,
    ),
}


def run_part(name: str, asked: Asked, path: Path, log: Path) -> None:
    """In a process of its own: figures go to `path`, all that it prints to `log`."""
    os.setsid()
    with log.open("wb") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    results = Results(path)
    try:
        PARTS[name].run(asked, results)
    except LeftOut as error:
        results.end("left out", str(error))
    except torch.OutOfMemoryError as error:
        results.end("left out", f"too little memory: {str(error).splitlines()[0]}")
    except Exception as error:
        traceback.print_exc()
        results.end("failed", f"{type(error).__name__}: {error}")
    else:
        results.end("done")
