"""How two shard sets differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data_prep.look.look import Contents


def compare(first: Path, second: Path) -> list[str]:
    """How two shard sets differ; empty if the same samples have the same labels and splits."""
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
    samples = [
        Counter(
            (split, contents.manifest.class_names[label], num_bytes, checksum)
            for split, index in contents.index.items()
            for label, num_bytes, checksum in zip(
                index["label"].tolist(),
                index["num_bytes"].tolist(),
                contents.checksums[split].tolist(),
                strict=True,
            )
        )
        for contents in sets
    ]
    of_one, of_other = samples
    for path, more in ((first, of_one - of_other), (second, of_other - of_one)):
        for split in sorted({split for split, *_ in more}):
            of_split = Counter({key: n for key, n in more.items() if key[0] == split})
            classes = sorted({name for _, name, *_ in of_split})
            lines.append(
                f"only in {path}: {of_split.total():,} samples of {split}, of {_some(classes)}"
            )
    return lines


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
