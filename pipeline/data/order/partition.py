"""Who reads which sample: pure functions, no I/O, no process group.

The epoch's order is a permutation of the samples by (seed, epoch). Step `s` of an epoch takes
positions [s·G, (s+1)·G) of it, whatever the number of replicas; only then are they divided:

    positions of step s     | sG .................................... (s+1)G |
    accumulation 2          | micro-batch 0        | micro-batch 1            |
    two replicas            | 0        | 1         | 0         | 1            |

A replica is one rank, or the two ranks that share a network's columns. So the same G on any number
of ranks and any accumulation sees the same images in the same steps, all ranks run the same number
of steps by construction, and the place to resume from is one integer, the step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.data.order.randomness import Stream, random_bits

Indices = npt.NDArray[np.int64]

_BLOCK_SAMPLES = 1 << 16
"""Samples that are processed at a time, so that intermediate arrays stay small."""


@dataclass(frozen=True, slots=True)
class ShardShuffle:
    """Shuffle the shards, then the samples of `num_shards` of them at a time."""

    shard_lengths: tuple[int, ...]
    """Samples in each shard."""
    num_shards: int


def steps_of_epoch(num_samples: int, global_batch_size: int, *, drop_last: bool) -> int:
    full, rest = divmod(num_samples, global_batch_size)
    return full + (rest > 0 and not drop_last)


def num_steps(epochs: float, steps_per_epoch: int) -> int:
    """Steps of a whole run; raises `ValueError` if there is none."""
    steps = round(epochs * steps_per_epoch)
    if steps == 0:
        raise ValueError(
            f"epochs is {epochs:g}, less than half a step: an epoch has "
            f"{steps_per_epoch} steps; give at least {1 / steps_per_epoch:.2g}"
        )
    return steps


def every_steps(every_epochs: float, steps_per_epoch: int) -> int:
    """Steps between two of what comes every so many epochs, more than 0."""
    return max(1, round(every_epochs * steps_per_epoch))


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """The batch arithmetic of a training run; checked once, when it is made."""

    num_samples: int
    global_batch_size: int
    num_replicas: int
    accumulation_steps: int
    drop_last: bool
    """Leave out the epoch's last, smaller batch. Otherwise it is trained on as it is."""
    shuffle: ShardShuffle | None = None
    """None: all samples are shuffled at once."""

    def __post_init__(self) -> None:
        parts = self.num_replicas * self.accumulation_steps
        if self.global_batch_size % parts:
            below = self.global_batch_size // parts * parts
            choices = " or ".join(str(size) for size in (below, below + parts) if size > 0)
            raise ValueError(
                f"global_batch_size {self.global_batch_size} cannot be divided among "
                f"{self.num_replicas} replicas × {self.accumulation_steps} accumulation steps; "
                f"use a multiple of {parts}, such as {choices}"
            )
        if self.num_samples < parts:
            raise ValueError(
                f"the split has {self.num_samples} samples; expected at least {parts}, one for "
                f"{self.num_replicas} replicas × {self.accumulation_steps} accumulation steps each"
            )
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is more than the split's "
                f"{self.num_samples} samples; use at most {self.num_samples // parts * parts}"
            )
        smallest = self.samples_in_step(self.steps_per_epoch - 1) // parts
        if smallest == 0:
            raise ValueError(
                f"the epoch's last batch of {self.num_samples % self.global_batch_size} samples "
                f"leaves some of {self.num_replicas} replicas × {self.accumulation_steps} "
                "accumulation steps without any; set data.drop_last to true"
            )

    @property
    def local_batch_size(self) -> int:
        """Samples in a full micro-batch of one replica."""
        return self.global_batch_size // (self.num_replicas * self.accumulation_steps)

    @property
    def steps_per_epoch(self) -> int:
        return steps_of_epoch(self.num_samples, self.global_batch_size, drop_last=self.drop_last)

    @property
    def dropped_samples(self) -> int:
        """Samples an epoch leaves out (other ones in every epoch)."""
        return self.num_samples % self.global_batch_size if self.drop_last else 0

    def epoch_of(self, step: int) -> int:
        """The epoch that the update after `step` updates belongs to."""
        return step // self.steps_per_epoch

    def samples_in_step(self, step: int) -> int:
        """Samples of the whole step, over all replicas."""
        start = step % self.steps_per_epoch * self.global_batch_size
        return min(self.global_batch_size, self.num_samples - start)

    def positions(self, step: int, micro_batch: int, replica: int) -> range:
        """Which positions of the epoch's order one replica's micro-batch takes."""
        start = step % self.steps_per_epoch * self.global_batch_size
        parts = self.num_replicas * self.accumulation_steps
        part = micro_batch * self.num_replicas + replica
        size = self.samples_in_step(step)
        return range(start + size * part // parts, start + size * (part + 1) // parts)


def epoch_order(
    num_samples: int, seed: int, epoch: int, shuffle: ShardShuffle | None = None
) -> Indices:
    """The epoch's permutation of the sample numbers, `int64[num_samples]`.

    With `shuffle` it is cut into windows, each the shuffled samples of some shards, so that a cache
    of the shards can be smaller than the split. A window of all shards equals no `shuffle`.
    """
    if shuffle is None:
        return _shuffled(np.arange(num_samples), seed, epoch)
    lengths = shuffle.shard_lengths
    assert sum(lengths) == num_samples, f"{sum(lengths)} samples in shards, {num_samples} in all"
    ends = np.cumsum(lengths).tolist()
    shards = np.argsort(random_bits(seed, Stream.SHARDS, epoch, np.arange(len(lengths))))
    order, filled = np.empty(num_samples, np.int64), 0
    for at in range(0, len(shards), shuffle.num_shards):
        window = np.sort(shards[at : at + shuffle.num_shards]).tolist()
        samples = np.concatenate([np.arange(ends[i] - lengths[i], ends[i]) for i in window])
        order[filled : filled + len(samples)] = _shuffled(samples, seed, epoch)
        filled += len(samples)
    return order


def _shuffled(samples: Indices, seed: int, epoch: int) -> Indices:
    """The sample numbers, which rise, in the order of their random bits."""
    bits = np.empty(len(samples), np.uint64)
    for at in range(0, len(samples), _BLOCK_SAMPLES):
        block = slice(at, at + _BLOCK_SAMPLES)
        bits[block] = random_bits(seed, Stream.ORDER, epoch, samples[block])
    places = np.argsort(bits, kind="stable")
    del bits
    return samples[places]


def sample_blocks(
    samples: range, block_size: int, num_replicas: int = 1, replica: int = 0
) -> list[range]:
    """The blocks of consecutive samples that one replica reads; each is read by one replica.

    Blocks are cut before they are divided, so a sample always sits in the same block at the same
    row: its logits, and so the counts, do not depend on the number of replicas.
    """
    starts = range(0, len(samples), block_size)[replica::num_replicas]
    return [samples[start : start + block_size] for start in starts]
