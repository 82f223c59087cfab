"""What is in a shard set: classes, sizes, formats, and images that are there twice."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_prep.shard_set.codec import codec_of
from data_prep.shard_set.files import printable
from data_prep.shard_set.index import check_labels, read_checksums, read_index
from data_prep.shard_set.manifest import Manifest, read_manifest
from data_prep.shard_set.tar_walk import BLOCK_BYTES

_MOST_ROWS = 30
"""Classes, or groups of equal images, that the text names."""
_NAME_BYTES = 100


@dataclass(frozen=True, slots=True)
class Place:
    """One image of a shard set."""

    split: str
    row: int


@dataclass(frozen=True, slots=True)
class Contents:
    """A shard set whose indexes are open."""

    shards: Path
    manifest: Manifest
    index: dict[str, npt.NDArray[np.void]]
    checksums: dict[str, npt.NDArray[np.uint32]]

    @classmethod
    def open(cls, shards: Path) -> Contents:
        """Raises `ShardSetError` if it is not whole."""
        manifest = read_manifest(shards)
        splits = manifest.splits
        indexes = {name: read_index(shards, split) for name, split in splits.items()}
        for name, index in indexes.items():
            check_labels(index["label"], manifest.num_classes, f"{name} of {shards}")
        return cls(
            shards,
            manifest,
            indexes,
            {name: read_checksums(shards, split) for name, split in splits.items()},
        )

    def read(self, place: Place) -> tuple[str, bytes]:
        """The name of an image in its tar, and its content; raises `OSError`."""
        shard, offset, num_bytes, _ = self.index[place.split][place.row].tolist()
        path = self.manifest.split(place.split).shard_paths(self.shards)[shard]
        with path.open("rb", buffering=0) as file:
            header = os.pread(file.fileno(), _NAME_BYTES, offset - BLOCK_BYTES)
            content = os.pread(file.fileno(), num_bytes, offset)
        name = header.split(b"\0", 1)[0].decode("utf-8", "replace")
        return f"{place.split} {path.name} {name}", content

    def label(self, place: Place) -> str:
        return self.manifest.class_names[int(self.index[place.split]["label"][place.row])]


@dataclass(slots=True)
class Findings:
    """What was found."""

    contents: Contents
    counts: dict[str, npt.NDArray[np.int64]]
    """Samples of each class, by split."""
    sizes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    damaged: list[str] = field(default_factory=list)
    equal: list[list[Place]] = field(default_factory=list)
    """Images with the same content, in groups."""


def look(shards: Path, num_images: int) -> Findings:
    """Look at a shard set; sizes and formats are those of that many images, spread evenly.

    Raises `ShardSetError` if it is not whole, and `OSError` if a shard cannot be read.
    """
    contents = Contents.open(shards)
    num_classes = contents.manifest.num_classes
    counts = {
        split: np.bincount(index["label"], minlength=num_classes)
        for split, index in contents.index.items()
    }
    found = Findings(contents, counts)
    places = [Place(split, row) for split, i in contents.index.items() for row in range(len(i))]
    step = max(1, len(places) / num_images)
    for number in range(min(num_images, len(places))):
        _look_at(found, places[int(number * step)])
    found.equal = list(_find_equal(contents))
    return found


def _look_at(found: Findings, place: Place) -> None:
    name, content = found.contents.read(place)
    try:
        if not codec_of(found.contents.manifest.encoding).has_fixed_size:
            with Image.open(io.BytesIO(content)) as image:
                found.formats[f"{image.format} {image.mode}"] += 1
        height, width, _ = codec_of(found.contents.manifest.encoding).decode(content).shape
    except Exception as error:  # decoders raise anything
        found.damaged.append(f"{name}: {error}")
        return
    found.sizes[f"{width}×{height}"] += 1


def _find_equal(contents: Contents) -> Iterator[list[Place]]:
    """Groups of images with one content; equal checksums and lengths are compared byte by byte."""
    splits = list(contents.index)
    marks = [
        contents.checksums[split].astype(np.uint64) << np.uint64(32) | index["num_bytes"]
        for split, index in contents.index.items()
    ]
    starts = np.cumsum([0, *map(len, marks)])
    joined = np.concatenate(marks)
    values, counts = np.unique(joined, return_counts=True)
    rows = np.flatnonzero(np.isin(joined, values[counts > 1]))
    rows = rows[np.argsort(joined[rows], kind="stable")]
    groups = np.split(rows, np.flatnonzero(np.diff(joined[rows])) + 1) if len(rows) else []
    for group in groups:
        numbers = (np.searchsorted(starts, group, side="right") - 1).tolist()
        by_content: dict[bytes, list[Place]] = {}
        for number, row in zip(numbers, group.tolist(), strict=True):
            place = Place(splits[number], row - int(starts[number]))
            by_content.setdefault(contents.read(place)[1], []).append(place)
        yield from (places for places in by_content.values() if len(places) > 1)


def describe(found: Findings) -> list[str]:
    """The findings as lines of text; names in them may be of any kind."""
    manifest = found.contents.manifest
    lines = [f"{manifest.title}: encoding {manifest.encoding}, source {manifest.source}"]
    if restart := manifest.options.get("restart"):
        lines[0] += f", restart markers every {restart} MCUs"
    for split, counts in found.counts.items():
        num_bytes = sum(manifest.split(split).shard_bytes)
        lines.append(
            f"{split}: {counts.sum():,} samples in {len(manifest.split(split).filenames)} shards, "
            f"{num_bytes:,} bytes; {counts.min():,} to {counts.max():,} of a class"
        )
    names = map(printable, manifest.class_names)
    rows = list(zip(names, *(c.tolist() for c in found.counts.values()), strict=True))
    width = max(len(str(name)) for name, *_ in rows[:_MOST_ROWS])
    lines.append(f"{'class':{width}} {' '.join(f'{split:>9}' for split in found.counts)}")
    for name, *numbers in rows[:_MOST_ROWS]:
        lines.append(f"{name:{width}} {' '.join(f'{number:9,}' for number in numbers)}")
    lines += _more(len(rows), "classes")
    num_looked_at = sum(found.sizes.values()) + len(found.damaged)
    lines.append(f"of {num_looked_at:,} images looked at:")
    for title, counter in (("sizes", found.sizes), ("formats", found.formats)):
        if counter:
            shares = (f"{name} {count:,}" for name, count in counter.most_common(6))
            rest = f", {len(counter) - 6} more" if len(counter) > 6 else ""
            lines.append(f"  {title} {', '.join(shares)}{rest}")
    lines += [f"  damaged: {what}" for what in found.damaged[:_MOST_ROWS]]
    return lines + _describe_equal(found)


def _more(count: int, what: str) -> list[str]:
    return [f"… and {count - _MOST_ROWS:,} more {what}"] if count > _MOST_ROWS else []


def _describe_equal(found: Findings) -> list[str]:
    if not found.equal:
        return ["no image is there twice"]
    across = [places for places in found.equal if len({place.split for place in places}) > 1]
    labels = [places for places in found.equal if len(set(map(found.contents.label, places))) > 1]
    lines = [f"{len(found.equal):,} images are there more than once, byte for byte"]
    if across:
        lines.append(
            f"LEAKAGE: {len(across):,} of them are in train and in val: accuracy on val counts "
            "images that were trained on"
        )
    if labels:
        lines.append(f"{len(labels):,} of them have more than one label")
    for places in (across + [each for each in found.equal if each not in across])[:_MOST_ROWS]:
        named = (f"{found.contents.read(p)[0]} ({found.contents.label(p)})" for p in places)
        lines.append(f"  {' = '.join(named)}")
    return lines + _more(len(found.equal), "groups")
