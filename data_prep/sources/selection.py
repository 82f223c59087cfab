"""Parts of a source: some of its classes, some images of each, and a val split cut off train."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Annotated

from data_prep.shard_set.fields import SEED, between, name_some, within
from data_prep.shard_set.options import Named
from data_prep.sources.labels import check_class_names, read_lines
from data_prep.sources.samples import Sample, SampleTable
from data_prep.sources.source import Source, SourceError

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """What is taken of a source; what is None takes all."""

    classes: str | None = None
    """Take the first N classes, those that a file names one a line, or NAME,NAME,…"""
    remap: Path | None = None
    """Rename or join classes: a file with a class, a comma or tab, and its new name a line."""
    limit_per_class: Annotated[int | None, within(1, 10_000_000)] = None
    """Take this many training images of each class."""
    val_ratio: Annotated[float | None, between(0, 1), Named("--val-ratio", "R")] = None
    """Cut this share off train as val, where the input has no val split."""
    seed: Annotated[int, SEED] = 0
    """Decides which images are taken."""

    def settings(self) -> dict[str, str | int | float]:
        """What changes the shard set, for its manifest."""
        entries = {
            "classes": self.classes,
            "remap": None if self.remap is None else self.remap.name,
            "limit_per_class": self.limit_per_class,
            "val_ratio": self.val_ratio,
        }
        return {name: value for name, value in entries.items() if value is not None}


def select(source: Source, selection: Selection) -> Source:
    """The part of a source that `selection` names, with labels from 0 on.

    Which images are taken depends on the seed and their keys alone, so it stays as it is when
    others are added. Raises `SourceError` if a class is not there, a split would be empty, or
    `val_ratio` is missing or has no effect.
    """
    if not selection.settings():
        _check_splits(source.splits, source.class_names)
        return source
    label_of, names = _choose_classes(source.class_names, selection)
    splits = {
        split: list(_relabelled(samples, label_of)) for split, samples in source.splits.items()
    }
    if selection.val_ratio is not None:
        if "val" in splits:
            raise SourceError(
                "--val-ratio has no effect: the input has a val split; leave the option out"
            )
        splits = _cut_off(splits.get("train", []), selection.val_ratio, selection.seed)
    if selection.limit_per_class is not None:
        splits["train"] = _limited(
            splits.get("train", []), selection.limit_per_class, selection.seed
        )
    _check_splits(splits, names)
    tables = {split: SampleTable(samples) for split, samples in splits.items()}
    return dataclasses.replace(
        source,
        class_names=names,
        splits=tables,
        selection={**source.selection, **selection.settings()},
    )


def _choose_classes(
    names: tuple[str, ...], selection: Selection
) -> tuple[Mapping[int, int], tuple[str, ...]]:
    """The new label of each label that is kept, and the names of the classes."""
    chosen = names if selection.classes is None else _named(names, selection.classes)
    new_name = {name: name for name in chosen}
    if selection.remap is not None:
        new_name = _read_remap(selection.remap, chosen)
    new_names = tuple(dict.fromkeys(new_name[name] for name in names if name in new_name))
    labels = {name: label for label, name in enumerate(new_names)}
    kept = {label: labels[new_name[name]] for label, name in enumerate(names) if name in new_name}
    return kept, new_names


def _named(names: tuple[str, ...], classes: str) -> tuple[str, ...]:
    """The classes that the option names, in the source's order."""
    if classes.isascii() and classes.isdigit():
        count = int(classes)
        if not 1 <= count <= len(names):
            raise SourceError(f"--classes is {count}; expected 1 to {len(names)}, as many as there")
        return names[:count]
    path = Path(classes)
    is_file = os.path.isfile(path)  # noqa: PTH113 - Path's fails for a long list of names
    wanted = _lines(path, "--classes") if is_file else classes.split(",")
    chosen = check_class_names(tuple(name.strip() for name in wanted), f"--classes {classes}")
    if unknown := set(chosen) - set(names):
        raise SourceError(
            f"--classes {classes}: {len(unknown)} of {len(chosen)} are no classes of the input "
            f"({name_some(unknown)}); it has {name_some(names)}; expected a number, a file with a "
            "class a line, or classes with commas between them"
        )
    return chosen


def _lines(path: Path, option: str) -> list[str]:
    return [line for line in read_lines(path, option) if line.strip()]


def _read_remap(path: Path, names: Sequence[str]) -> dict[str, str]:
    """The new name of each class that the file names."""
    found: dict[str, str] = {}
    for line in _lines(path, "--remap"):
        parts = line.partition("\t" if "\t" in line else ",")
        old, new = parts[0].strip(), parts[2].strip()
        if not (old and new):
            raise SourceError(
                f"--remap {path} has the line {line!r}; expected a class and its new name with a "
                "tab or a comma between them"
            )
        if old in found:
            raise SourceError(f"--remap {path} names the class {old} twice")
        found[old] = new
    if unknown := set(found) - set(names):
        raise SourceError(
            f"--remap {path} names classes that are not there ({name_some(unknown)}); the input "
            f"has {name_some(names)}"
        )
    check_class_names(tuple(dict.fromkeys(found.values())), f"--remap {path}")
    if left_out := [name for name in names if name not in found]:
        _log.warning(
            "%d classes are left out, as %s does not name them: %s",
            len(left_out),
            path,
            name_some(left_out),
        )
    return found


def _relabelled(samples: SampleTable, label_of: Mapping[int, int]) -> Iterator[Sample]:
    for sample in samples:
        if sample.label in label_of:
            yield dataclasses.replace(sample, label=label_of[sample.label])


def _rank(sample: Sample, seed: int, purpose: str) -> int:
    """64 bits that are a sample's own: nothing but its key and the seed decides them."""
    text = f"{purpose} {seed}/{sample.key}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def _by_class(samples: Sequence[Sample], seed: int, purpose: str) -> dict[int, list[Sample]]:
    """The samples of each class, by rank."""
    found: dict[int, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: _rank(sample, seed, purpose)):
        found.setdefault(sample.label, []).append(sample)
    return found


def _cut_off(samples: Sequence[Sample], ratio: float, seed: int) -> dict[str, list[Sample]]:
    """Train and val: of each class those below the ratio by rank, and at least one."""
    val: set[str] = set()
    for label, of_class in _by_class(samples, seed, "val").items():
        if len(of_class) < 2:
            raise SourceError(
                f"the class with label {label} has one image; --val-ratio needs two of each class"
            )
        limit = int(ratio * (1 << 64))
        below = [sample.key for sample in of_class if _rank(sample, seed, "val") < limit]
        val.update((below or [of_class[0].key])[: len(of_class) - 1])
    return {
        "train": [sample for sample in samples if sample.key not in val],
        "val": [sample for sample in samples if sample.key in val],
    }


def _limited(samples: Sequence[Sample], limit: int, seed: int) -> list[Sample]:
    of_classes = _by_class(samples, seed, "limit").values()
    kept = {sample.key for of_class in of_classes for sample in of_class[:limit]}
    return [sample for sample in samples if sample.key in kept]


def _check_splits(splits: Mapping[str, Sized], names: tuple[str, ...]) -> None:
    if "val" not in splits:
        raise SourceError(
            "the input has no val split; cut one off train with --val-ratio, such as 0.1"
        )
    for split in ("train", "val"):
        if not splits.get(split):
            raise SourceError(
                f"the split {split} of the input has no image of the {len(names)} classes that "
                "are taken; expected some"
            )
