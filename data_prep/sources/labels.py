"""Labels as data sets write them: numbers or class names, made into labels from 0 to C-1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.shard_set.fields import name_some
from data_prep.sources.source import SourceError

RawLabel = int | str
"""A number, or the name of a class."""


def read_class_names(path: Path) -> tuple[str, ...]:
    """The lines of a file, in label order; raises `SourceError` if one is empty or there twice."""
    names = tuple(line.strip() for line in read_lines(path, "--class-names"))
    return check_class_names(names, f"--class-names {path}")


def read_lines(path: Path, option: str) -> list[str]:
    """The lines of a text file that `option` names; raises `SourceError` if it cannot be read."""
    try:
        return path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"{option} {path} cannot be read ({error}); expected a text file in UTF-8"
        ) from None


def check_class_names(names: tuple[str, ...], where: str) -> tuple[str, ...]:
    """The names, if there are any and each is printable text of its own; else `SourceError`."""
    if not names:
        raise SourceError(f"{where} holds no class names; expected one a line")
    if odd := [ascii(name) for name in names if not name or not name.isprintable()]:
        raise SourceError(f"{where} has class names that are empty or not printable: {odd[0]}")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise SourceError(f"{where} has a class name twice ({name_some(repeated)})")
    return names


def number_labels(
    raw: Mapping[str, Sequence[RawLabel]],
    names: tuple[str, ...] | None,
    where: str,
    first_label: int = 0,
) -> tuple[tuple[str, ...], dict[str, npt.NDArray[np.int64]]]:
    """The class names, and the labels of each split's samples, in their order.

    `raw` has the labels of each split as the data set writes them; `names` are its class names in
    label order, if it has any. Without them numbers are classes `0` to `C-1`, and texts are
    classes in the order of the texts. Numbers begin at `first_label`. `where` says to people where
    the labels are.
    Raises `SourceError` if labels are of both kinds, outside the classes, or do not begin at the
    first.
    """
    if names is not None:
        check_class_names(names, where)
    found: set[RawLabel] = set().union(*raw.values())
    if not found:
        raise SourceError(f"{where} has no rows; expected a label for each image")
    texts = sorted(label for label in found if isinstance(label, str))
    numbers = sorted(label - first_label for label in found if not isinstance(label, str))
    if texts and numbers:
        raise SourceError(
            f"{where} has labels of two kinds, such as {numbers[0] + first_label} and "
            f"'{texts[0]}'; expected numbers or class names, not both"
        )
    if texts:
        names = check_class_names(tuple(texts) if names is None else names, where)
        if unknown := set(texts) - set(names):
            raise SourceError(
                f"{where} has labels that are no class names ({name_some(unknown)}); expected "
                f"those of {len(names)} classes: {name_some(names)}"
            )
    else:
        names = _names_of_numbers(numbers, names, where)
    label_of: dict[RawLabel, int] = (
        {name: label for label, name in enumerate(names)}
        if texts
        else {number + first_label: number for number in numbers}
    )
    return names, {
        split: np.fromiter(map(label_of.__getitem__, labels), np.int64, len(labels))
        for split, labels in raw.items()
    }


def _names_of_numbers(
    numbers: Sequence[int], names: tuple[str, ...] | None, where: str
) -> tuple[str, ...]:
    lowest, highest = numbers[0], numbers[-1]
    if lowest == -1:
        raise SourceError(
            f"{where} has the label -1, by which data sets mark images without a label, as of a "
            "hidden test split: leave those files out"
        )
    if lowest == 1 and highest == len(names or numbers):
        raise SourceError(
            f"{where} has labels from 1 to {highest}; expected 0 to {highest - 1}: "
            "count them from 1 with --first-label 1"
        )
    if names is not None:
        if not 0 <= lowest <= highest < len(names):
            raise SourceError(
                f"{where} has the label {lowest if lowest < 0 else highest}; expected 0 to "
                f"{len(names) - 1}, as there are {len(names)} class names"
            )
        return names
    if lowest != 0 or len(numbers) != highest + 1:
        there = set(numbers)
        missing = next(label for label in range(highest + 2) if label not in there)
        raise SourceError(
            f"{where} has {len(numbers)} different labels from {lowest} to {highest}, but not "
            f"{missing}; expected every number from 0 on: give the class names in label order "
            "with --class-names FILE, one a line"
        )
    return tuple(map(str, numbers))


def find_column(
    names: Sequence[str], where: str, what: str, asked: str | None, usual: Sequence[str]
) -> str:
    """The name of a table's column: the one asked for, or else the first of the usual names.

    Raises `SourceError` if there is none, or two.
    """
    wanted = usual if asked is None else [asked]
    for name in wanted:
        found = [each for each in names if each.lower() == name.lower()]
        if len(found) == 1:
            return found[0]
    raise SourceError(
        f"{where} has no column {' or '.join(map(repr, wanted))}; it has {', '.join(names)!r}: "
        f"name that of the {what}s with --{what}-column"
    )
