"""On which device the command measures, and how much of everything: all that a dry run changes."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch.profiler import ProfilerActivity

from data_prep.convert.options import num_processors
from pipeline.config.schema import Precision

Mark = torch.cuda.Event | float
"""A point in the device's queue of work, or in the host's time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """The sizes of all parts."""

    device: torch.device
    compiler: str
    """Behind torch.compile: its backend."""
    batch_sizes: tuple[int, ...]
    """Of the step table, the one that matters most first."""
    precisions: tuple[Precision, ...]
    images_in_round: int
    """Of steps that are timed together."""
    rounds: int
    images_in_groups: int
    """In the steps whose kernels are timed."""
    warm_up: int
    repeats: int
    matrix_size: int
    num_products: int
    """This number of products of square matrices of that size takes an H200 more than 20 ms."""
    copied_bytes: int
    recipe: str
    """Of end-to-end training."""
    stored_pixels: int
    """Height and width of generated images."""
    num_images: int
    """Generated ones that differ."""
    num_copies: int
    """How often each of them is in a split."""
    num_workers: int
    """Processes that make shards."""
    train_batch: int
    train_epochs: int
    log_every_steps: int
    """Of end-to-end training; its first log interval warms up."""
    cifar_images: tuple[int, int]
    """Generated ones for train and val, where CIFAR-10 is not given."""
    cifar_options: tuple[str, ...]
    """Beside what the recipe says."""
    message_bytes: tuple[int, ...]
    """Of an all-reduce."""

    @property
    def kind(self) -> Literal["cpu", "cuda"]:
        return "cuda" if self.device.type == "cuda" else "cpu"

    @property
    def activity(self) -> ProfilerActivity:
        return ProfilerActivity.CUDA if self.kind == "cuda" else ProfilerActivity.CPU

    @property
    def profiled_time(self) -> str:
        """What the profiler calls the time of a kernel itself, in microseconds."""
        return "self_device_time_total" if self.kind == "cuda" else "self_cpu_time_total"

    def steps_in_round(self, num_images: int) -> int:
        return max(1, self.images_in_round // num_images)

    def synchronize(self) -> None:
        if self.kind == "cuda":
            torch.cuda.synchronize()

    def mark(self) -> Mark:
        """The device's own time, when it comes to this point."""
        if self.kind == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def free_bytes(self) -> int | None:
        """Memory of the GPU that nothing has; None on a CPU."""
        return torch.cuda.mem_get_info()[0] if self.kind == "cuda" else None


def milliseconds_between(begin: Mark, end: Mark) -> float:
    """Of two marks that the device has passed."""
    if isinstance(begin, float) or isinstance(end, float):
        assert isinstance(begin, float), "marks of one device"
        assert isinstance(end, float), "marks of one device"
        return 1000 * (end - begin)
    elapsed: float = begin.elapsed_time(end)
    return elapsed


ON_GPU = Scale(
    device=torch.device("cuda"),
    compiler="inductor",
    batch_sizes=(1024, 4096, 128, 2048, 512),
    precisions=("bf16", "fp16", "fp32"),
    images_in_round=20 * 1024,
    rounds=5,
    images_in_groups=1024,
    warm_up=3,
    repeats=20,
    matrix_size=8192,
    num_products=16,
    copied_bytes=1 << 30,
    recipe="alexnet_fast",
    stored_pixels=256,
    num_images=1024,
    num_copies=16,
    num_workers=num_processors(),
    train_batch=1024,
    train_epochs=10,
    log_every_steps=20,
    cifar_images=(10_000, 2_000),
    cifar_options=(),
    message_bytes=tuple(4**power for power in range(5, 15)),
)

DRY_RUN = dataclasses.replace(
    ON_GPU,
    device=torch.device("cpu"),
    compiler="eager",
    batch_sizes=(1,),
    precisions=("fp32",),
    images_in_round=1,
    rounds=1,
    images_in_groups=1,
    warm_up=0,
    repeats=1,
    matrix_size=64,
    num_products=1,
    copied_bytes=1 << 20,
    recipe="cifar10",
    stored_pixels=32,
    num_images=8,
    num_copies=2,
    num_workers=1,
    train_batch=4,
    train_epochs=1,
    log_every_steps=1,
    cifar_images=(32, 10),
    cifar_options=("--epochs", "1", "--global_batch_size", "16", "--log_every_steps", "1"),
    message_bytes=(1 << 10, 1 << 14),
)
