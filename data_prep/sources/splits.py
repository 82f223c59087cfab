"""Which split a file belongs to, where the names of files or folders say it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePath

from data_prep.shard_set.fields import name_some
from data_prep.sources.source import SourceError

SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""The split that a word means, in small letters; where nothing is val, test is."""
_WORD = re.compile(r"(?<![a-z])(train|val|test)")


def find_files(root: Path, suffix: str) -> list[Path]:
    """`root`, or the files below it whose names end with `suffix`, without hidden ones, sorted."""
    found = [root] if root.is_file() else sorted(root.rglob("*"))
    files = [each for each in found if each.suffix == suffix and not each.name.startswith(".")]
    if not files:
        raise SourceError(f"{root} has no files *{suffix}; expected one, or a folder of them")
    return files


def by_split(names: Iterable[str]) -> dict[str, list[str]]:
    """The names, paths relative to the input, by split.

    The file's name decides, or else that of a folder above it, by a word that begins with train,
    val (so does validation) or test, which is the split val if there is no other, and else left
    out. Names of which none says anything are train.
    Raises `SourceError` if only some say nothing.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        parts = [part.lower() for part in reversed(PurePath(name).parts)]
        words = (match[1] for part in parts if (match := _WORD.search(part)) is not None)
        found.setdefault(next(words, ""), []).append(name)
    unknown = found.pop("", [])
    if not found:
        return {"train": unknown}
    if unknown:
        raise SourceError(
            f"the split of {name_some(unknown)} is not known; expected the word train, "
            "val or test in the name of each, or of its folder: rename them, or move them elsewhere"
        )
    test = found.pop("test", [])
    if test and "val" not in found:
        found["val"] = test
    return found
