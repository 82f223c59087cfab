"""Whether the memory of the devices has room for images beside what works on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from data_prep.shard_set.memory import host_free_bytes
from pipeline.data.augment.crop_policy import ImageSize
from pipeline.data.order.partition import BatchPlan
from pipeline.ranks.world import World

_RESERVE = {
    "cuda": (3 << 30, "cuDNN, NCCL, compiled kernels and gaps between blocks"),
    "cpu": (256 << 20, "oneDNN and gaps between blocks"),
}
"""What is kept free and cannot be computed, in bytes, and what takes it.

On a GPU cuBLAS takes up to 32 MiB a stream, cuDNN up to about 1 GiB for the convolutions it tries,
NCCL up to some hundred MiB of buffers; the allocator keeps blocks of 2 MiB and more in parts.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResidentImages:
    """A split that is to be in memory, divided among the ranks."""

    split: str
    num_samples: int
    image_shape: tuple[int, ...]
    """Of uint8: H×W×3, or (3H/2)×W for planes."""
    block_size: int = 1
    """Samples that one rank holds together."""
    num_holders: int = 1
    """Ranks that hold the same."""

    @property
    def image_bytes(self) -> int:
        return math.prod(self.image_shape)

    def share(self, num_ranks: int) -> int:
        """Bytes of the rank that has most."""
        num_blocks = -(-self.num_samples // self.block_size)
        most = -(-num_blocks // (num_ranks // self.num_holders))
        return most * self.block_size * self.image_bytes

    def __str__(self) -> str:
        size, total = "×".join(map(str, self.image_shape)), self.num_samples * self.image_bytes
        return f"{self.num_samples:,} {self.split} images of {size} bytes are {_size(total)}"


def check_room(
    splits: Sequence[ResidentImages], needs: Mapping[str, int], world: World, free: int
) -> None:
    """Raise `ValueError` if a rank's share of all `splits` does not fit into `free` bytes.

    `needs` says what the rank needs besides, in bytes, and what for.
    """
    reserve, reason = _RESERVE[world.device.type]
    needs = {what: count for what, count in {**needs, reason: reserve}.items() if count}
    share = sum(split.share(world.size) for split in splits)
    if share + sum(needs.values()) <= free:
        return
    room = free - sum(needs.values())
    ways = ["a smaller --global_batch_size or more --accumulation_steps"] if len(needs) > 1 else []
    if room >= sum(split.block_size * split.image_bytes for split in splits):  # the least share
        total = sum(split.num_samples * split.image_bytes for split in splits)
        step = max(split.num_holders for split in splits)
        num_ranks = max(world.size + step, total // room // step * step)
        while sum(split.share(num_ranks) for split in splits) > room:
            num_ranks += step
        ways.insert(0, f"{num_ranks} ranks or more")
    if any(len(split.image_shape) == 3 for split in splits):
        ways.append("a shard set of --encoding yuv420, which is half as large")
    ways += ["a smaller --size", "another --data.reader"]
    listed = ", ".join(f"{_size(count)} for {what}" for what, count in needs.items())
    raise ValueError(
        f"the resident images do not fit in memory: {' and '.join(map(str, splits))}, "
        f"{_size(share)} for each of {world.size} ranks; a rank needs {listed} besides, and "
        f"{world.device.type} has {_size(free)} free for each: use {', '.join(ways[:-1])}, or "
        f"{ways[-1]}"
    )


def exchange_bytes(plan: BatchPlan, crop_size: ImageSize, world: World) -> int:
    """Bytes of a rank's crops on their way: of the batch in use, and of the next one.

    What a rank sends is as much as it gets, on average. With shuffled shards one rank may hold all
    samples of a batch.
    """
    if world.size == 1:
        return 0
    most_sent = 2 if plan.shuffle is None else world.size
    return 2 * (1 + most_sent) * plan.local_batch_size * 3 * math.prod(crop_size)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB"


def free_bytes(world: World) -> int:
    """What this rank may take of its device's memory."""
    if world.device.type == "cuda":
        return torch.cuda.mem_get_info(world.device)[0]
    return host_free_bytes() // world.environment.local_world_size
