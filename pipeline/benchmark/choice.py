"""Which reader to take, of those that were measured: pure functions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data_prep.shard_set.manifest import Manifest
from pipeline.config.command_line import with_values
from pipeline.config.data import READERS, ReaderName
from pipeline.config.schema import Config

_MEGABYTE = 1e6


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """A reader with a number of threads, in a process of its own."""

    reader: ReaderName
    num_threads: int
    images_per_second: float
    cores: float
    """CPU seconds in each second."""
    private_bytes: int
    """Memory that it takes and shares with no other process."""


def table(measurements: Sequence[Measurement], step_rate: float, device: str) -> str:
    """What was measured, a line each, and how many devices each would feed."""
    fed = f"devices fed ({device})"
    head = f"{'reader':8}  threads  images/s  cores  memory, MB  {fed}"
    rows = (
        f"{one.reader:8}  {one.num_threads:7}  {one.images_per_second:8,.0f}  {one.cores:5.2f}  "
        f"{one.private_bytes / _MEGABYTE:10,.0f}  {one.images_per_second / step_rate:{len(fed)}.1f}"
        for one in measurements
    )
    return "\n".join([head, *rows])


def choose(measurements: Sequence[Measurement], step_rate: float, num_devices: int) -> str:
    """The first of `READERS` that feeds all devices of this host, or the fastest; in a sentence."""
    needed = step_rate * num_devices
    devices = "the device" if num_devices == 1 else f"all {num_devices} devices"
    by_order = sorted(measurements, key=lambda one: (READERS.index(one.reader), one.num_threads))
    for one in by_order:
        if one.images_per_second >= needed:
            return (
                f"choose --data.reader {one.reader} --data.decode_threads {one.num_threads}: it is "
                f"the simplest that feeds {devices} of this host ({needed:,.0f} images a second)"
            )
    best = max(measurements, key=lambda one: one.images_per_second)
    return (
        f"none feeds {devices} of this host ({needed:,.0f} images a second): the fastest is "
        f"--data.reader {best.reader} --data.decode_threads {best.num_threads}, with "
        f"{best.images_per_second:,.0f}; pixels instead of JPEGs (data_prep shard … --encoding rgb "
        "--size 256) and --data.reader resident take the least work for an image"
    )


def candidates(config: Config, manifest: Manifest, beton: str | None) -> Iterator[Config | str]:
    """The configurations to measure, and sentences about what is left out."""
    cores = len(os.sched_getaffinity(0))
    yield from _with_threads(config, {1, cores})
    if beton:
        values = {"data.reader": "beton", "data.beton": beton}
        yield from _with_threads(with_values(config, values), {1, cores})
    else:
        yield "beton is left out: no --beton FILE (made by 'python -m data_prep beton')"
    if manifest.image_size is None:
        yield "resident is left out: the images differ in size"
    else:  # its threads only fill the memory
        yield from _with_threads(with_values(config, {"data.reader": "resident"}), {cores})


def _with_threads(config: Config, numbers: set[int]) -> Iterator[Config]:
    for number in sorted(numbers):
        yield with_values(config, {"data.decode_threads": number})
