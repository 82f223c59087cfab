"""Random numbers that are a pure function of what they are for.

A draw depends on (seed, stream, epoch, sample) and on nothing else: not on the rank, the thread,
the library version or what was drawn before. So any number of ranks draws the same numbers for
the same image, and a resumed run continues them without saving a generator's state.

The mixing function is the finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable
Pseudorandom Number Generators, OOPSLA 2014), applied once for every coordinate.
"""

from __future__ import annotations

from enum import IntEnum, unique
from functools import lru_cache

import numpy as np
import numpy.typing as npt

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


@unique
class Stream(IntEnum):
    """What a draw is for. The numbers are part of every run's definition: never reuse one."""

    ORDER = 0
    SHIFT_DOWN = 1
    SHIFT_RIGHT = 2
    FLIP = 3
    DROPOUT = 5
    COLOR = 6
    CROP_SHAPE = 7
    SHARDS = 8


def random_bits(
    seed: int, stream: Stream, epoch: int, samples: npt.NDArray[np.integer]
) -> npt.NDArray[np.uint64]:
    """64 uniform random bits for each sample number, in the shape of `samples`."""
    return _mix(_state_of(seed, stream, epoch) ^ samples.astype(np.uint64))


@lru_cache(maxsize=64)
def _state_of(seed: int, stream: Stream, epoch: int) -> npt.NDArray[np.uint64]:
    """What all samples share: a small batch's numbers take less time than this."""
    state = np.array(seed & _MASK, dtype=np.uint64)
    for coordinate in (np.uint64(stream), np.uint64(epoch)):
        state = _mix(state) ^ coordinate
    return _mix(state)


def random_below(
    bound: int | npt.NDArray[np.int64],
    seed: int,
    stream: Stream,
    epoch: int,
    samples: npt.NDArray[np.integer],
) -> npt.NDArray[np.int64]:
    """A uniform integer in [0, bound) for each sample number; `bound` may differ by sample.

    Taken from the upper 32 bits, so the bias is below bound / 2**32.
    """
    upper = random_bits(seed, stream, epoch, samples) >> np.uint64(32)
    return ((upper * np.asarray(bound, np.uint64)) >> np.uint64(32)).astype(np.int64)


def random_normals(
    count: int, seed: int, stream: Stream, epoch: int, samples: npt.NDArray[np.integer]
) -> npt.NDArray[np.float64]:
    """`count` independent standard normal numbers for each sample number, N×count.

    From pairs of uniform numbers (Box and Muller, 1958).
    """
    uniforms = random_uniforms(2 * count, seed, stream, epoch, samples)
    radius, angle = uniforms[:, :count], uniforms[:, count:]
    return np.asarray(np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle))


def random_uniforms(
    count: int, seed: int, stream: Stream, epoch: int, samples: npt.NDArray[np.integer]
) -> npt.NDArray[np.float64]:
    """`count` independent uniform numbers between 0 and 1, of 53 bits, for each sample: N×count."""
    bits = random_bits(seed, stream, epoch, samples)[:, None]
    lots = np.arange(count, dtype=np.uint64)
    return np.asarray(((_mix(bits ^ lots) >> np.uint64(11)) + 0.5) / (1 << 53))


def dropout_keys(seed: int, epoch: int, samples: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """For each sample number the key that decides its dropout masks in an epoch."""
    return random_bits(seed, Stream.DROPOUT, epoch, samples).view(np.int64)


def _mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        state = state + np.uint64(_GOLDEN_GAMMA)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(state ^ (state >> np.uint64(31)), dtype=np.uint64)
