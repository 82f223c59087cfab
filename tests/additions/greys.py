"""The source `greys`: black images and grey ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.shard_set.pixels import Pixels
from data_prep.sources.samples import Sample, SampleTable
from data_prep.sources.source import Source


@dataclass(frozen=True, slots=True)
class Greys:
    def read(self, sample: Sample) -> Pixels:
        return np.full((32, 32, 3), 100 * sample.label, np.uint8)

    def stamp(self, sample: Sample) -> int:
        return 0


def open_greys(num_images: int) -> Source:
    numbers = range(num_images)
    samples = SampleTable(Sample(f"{number}", number % 2, f"{number}") for number in numbers)
    return Source(
        name="greys",
        class_names=("black", "grey"),
        splits={"train": samples, "val": samples},
        reader=Greys(),
        default_encoding="rgb",
    )
