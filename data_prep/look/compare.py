"""How two shard sets differ."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from data_prep.look.look import Contents, Place
from data_prep.shard_set.compiled import HOW_TO_BUILD, is_compiled
from data_prep.shard_set.manifest import ADOPTED, ShardSetError
from data_prep.shard_set.recoding import recode_jpeg


def compare(first: Path, second: Path) -> list[str]:
    """How two shard sets differ; empty if the same samples have the same labels and splits.

    If one has other restart markers than the other, each image is read, and compared without them.
    Raises `ShardSetError` if one is not whole, or if reading them needs what is not there.
    """
    sets = [Contents.open(first), Contents.open(second)]
    one, other = (contents.manifest for contents in sets)
    lines = [
        f"{what}: {a} and {b}"
        for what, a, b in (
            ("encoding", one.encoding, other.encoding),
            ("image size", one.image_size, other.image_size),
            ("classes", one.num_classes, other.num_classes),
        )
        if a != b
    ]
    only = [
        sorted(set(a.class_names) - set(b.class_names)) for a, b in ((one, other), (other, one))
    ]
    for path, names in zip((first, second), only, strict=True):
        lines += [f"classes only in {path}: {_some(names)}"] if names else []
    if not any(only) and one.class_names != other.class_names:
        lines.append("the classes have other labels")
    are_alike = one.options.get("restart", 0) == other.options.get("restart", 0)
    is_unsure = ADOPTED in (one.source, other.source)  # JPEGs of others may have any markers
    is_as_stored = are_alike and not (is_unsure and is_compiled())
    if not are_alike and not is_compiled():
        raise ShardSetError(
            f"{first} and {second} have other restart markers, and to compare them needs the "
            f"compiled code of this program, which {HOW_TO_BUILD}"
        )
    of_one, of_other = (_samples(contents, is_as_stored=is_as_stored) for contents in sets)
    for path, more in ((first, of_one - of_other), (second, of_other - of_one)):
        for split in sorted({split for split, *_ in more}):
            of_split = Counter({key: n for key, n in more.items() if key[0] == split})
            classes = sorted({name for _, name, *_ in of_split})
            lines.append(
                f"only in {path}: {of_split.total():,} samples of {split}, of {_some(classes)}"
            )
    return lines


def _samples(contents: Contents, *, is_as_stored: bool) -> Counter[tuple[str, str, int, int]]:
    """Split, class, length and CRC-32 of each sample: of what is stored, or without markers."""
    found: Counter[tuple[str, str, int, int]] = Counter()
    for split, index in contents.index.items():
        names = (contents.manifest.class_names[label] for label in index["label"].tolist())
        if is_as_stored:
            checksums = contents.checksums[split].tolist()
            marks = list(zip(index["num_bytes"].tolist(), checksums, strict=True))
        else:
            places = [Place(split, row) for row in range(len(index))]
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
                marks = list(threads.map(partial(_mark, contents), places))
        found.update((split, name, *mark) for name, mark in zip(names, marks, strict=True))
    return found


def _mark(contents: Contents, place: Place) -> tuple[int, int]:
    """Length and CRC-32 of a JPEG without restart markers."""
    _, content = contents.read(place)
    content = recode_jpeg(content, 0) or content
    return len(content), zlib.crc32(content)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
