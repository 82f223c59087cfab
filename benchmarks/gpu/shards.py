"""Shard sets of noise, for what depends on the number of bytes and not on what they show."""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.scale import Scale
from data_prep.convert.conversion import convert
from data_prep.convert.options import Options
from data_prep.convert.publish import publish_split
from data_prep.shard_set.index import read_checksums, read_index
from data_prep.shard_set.manifest import MANIFEST_NAME, Split, WrittenEncoding, write_manifest
from data_prep.shard_set.pixels import Pixels
from data_prep.sources.samples import Sample, SampleTable
from data_prep.sources.source import Source

_CLASSES = tuple(f"class-{number:03d}" for number in range(1000))
_SPLITS = ("train", "val")
_IMAGES_IN_SHARD = 64
"""So few that all cores write."""


@dataclass(frozen=True, slots=True)
class Noise:
    """Images of size×size pixels that depend on nothing but their number."""

    size: int

    def stamp(self, _sample: Sample) -> int:
        return 0

    def read(self, sample: Sample) -> Pixels:
        random = np.random.default_rng(int(sample.locator))
        return random.integers(256, size=(self.size, self.size, 3), dtype=np.uint8)


def noise_shards(folder: Path, scale: Scale, encoding: WrittenEncoding) -> Path:
    """A shard set in `folder`, unless it is there: each image is in each split several times."""
    if (folder / MANIFEST_NAME).exists():
        return folder
    samples = [
        Sample(f"noise-{number:06d}", number % len(_CLASSES), str(number))
        for number in range(scale.num_images)
    ]
    source = Source(
        name="noise",
        class_names=_CLASSES,
        splits={split: SampleTable(samples) for split in _SPLITS},
        reader=Noise(scale.stored_pixels),
        default_encoding=encoding,
    )
    options = Options(shards=folder, samples_per_shard=_IMAGES_IN_SHARD, workers=scale.num_workers)
    manifest, _, _ = convert(source, options, sys.stderr)
    assert manifest is not None, "no other task has a part of it"
    splits = {name: _repeated(folder, manifest.splits[name], scale.num_copies) for name in _SPLITS}
    write_manifest(folder, dataclasses.replace(manifest, splits=splits))
    return folder


@dataclass(frozen=True, slots=True)
class _Shard:
    num_bytes: int
    sha256: str
    index: npt.NDArray[np.void]
    checksums: npt.NDArray[np.uint32]


def _repeated(folder: Path, split: Split, num_copies: int) -> Split:
    """The same shards under further names, as hard links: more images in as many bytes."""
    index, checksums = np.array(read_index(folder, split)), np.array(read_checksums(folder, split))
    shards: dict[str, _Shard] = {}
    for copy in range(num_copies):
        for number, name in enumerate(split.filenames):
            other = name if copy == 0 else f"copy-{copy}-{name}"
            if copy > 0:
                os.link(folder / name, folder / other)
            rows = index["shard"] == number
            own = index[rows]
            own["shard"] = len(shards)
            facts = split.shard_bytes[number], split.shard_sha256[number]
            shards[other] = _Shard(*facts, own, checksums[rows])
    return publish_split(folder, split.name, shards)
