"""The source `folder`: images in a folder for each class."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path

from data_prep.shard_set.keys import make_keys
from data_prep.sources.samples import Sample, SampleTable
from data_prep.sources.source import (
    FileReader,
    Source,
    SourceError,
    check_same,
    choose,
    list_files,
    name_some,
)


def open_folder(root: Path) -> Source:
    """The images `train/CLASS/*` and `val/CLASS/*` (or `test/CLASS/*`) below `root`.

    Classes get their labels in the order of their names. Hidden files are left out; every other
    file of a class counts as an image, whatever its name ends in.
    Raises `SourceError` if a split is missing, a class is empty or holds other things than files,
    the splits have different classes, or the names of classes or their order are ambiguous.
    """
    folders = {
        "train": root / choose(root, "train", ["train"]),
        "val": root / choose(root, "val", ["val", "test"]),
    }
    classes = {split: _find_classes(folder) for split, folder in folders.items()}
    check_same(
        f"the classes of {folders['train']} and {folders['val']}",
        map(_show_name, classes["train"]),
        map(_show_name, classes["val"]),
    )
    return Source(
        name="folder",
        class_names=tuple(classes["train"]),
        splits={split: _list(root, folders[split], classes[split]) for split in folders},
        reader=FileReader(root),
        default_encoding="jpeg",
    )


def _find_classes(folder: Path) -> dict[str, str]:
    """Names of folders by class, in the order of the classes' names.

    A class has the composed form (NFC) of the folder's name, since file systems spell the same name
    in different bytes. Raises `SourceError` if names or their order are ambiguous.
    """
    visible = (path for path in folder.iterdir() if not path.name.startswith("."))
    found = [path.name for path in visible if path.is_dir()]
    if not found:
        raise SourceError(f"{folder} has no class folders; expected {folder}/CLASS/* with images")
    if odd := [ascii(name) for name in found if not name.isprintable()]:
        raise SourceError(
            f"names of class folders in {folder} are not UTF-8, or hold line breaks, unusual "
            f"spaces or the like ({name_some(odd)}): rename them"
        )
    classes = {unicodedata.normalize("NFC", name): name for name in found}
    if len(classes) < len(found):
        others = set(found) - set(classes.values())
        same = others | {classes[unicodedata.normalize("NFC", name)] for name in others}
        raise SourceError(
            f"names of class folders in {folder} look the same and differ in their bytes "
            f"({name_some(map(ascii, same))}): put their images into one folder"
        )
    names = sorted(classes)
    numbers = [name for name in names if name.isascii() and name.isdigit()]
    if numbers != sorted(numbers, key=int):
        width = max(map(len, numbers))
        raise SourceError(
            f"the class folders of {folder} are numbers that sort differently as names "
            f"({name_some(numbers)}): labels would not be those numbers; "
            f"pad them with zeros to one length, e.g. {numbers[0].zfill(width)}"
        )
    return {name: classes[name] for name in names}


def _list(root: Path, folder: Path, classes: Mapping[str, str]) -> SampleTable:
    """The samples of a split."""
    files = [
        (label, class_name, folder_name, name)
        for label, (class_name, folder_name) in enumerate(classes.items())
        for name in list_files(folder / folder_name)
    ]
    keys = make_keys([f"{class_name}/{name}" for _, class_name, _, name in files])
    prefix = folder.relative_to(root)
    return SampleTable(
        Sample(key, label, f"{prefix}/{folder_name}/{name}")
        for key, (label, _, folder_name, name) in zip(keys, files, strict=True)
    )


def _show_name(name: str) -> str:
    """The name; where it may look like another one, or ends in spaces, with its escapes."""
    if not name.isascii():
        return f"{name} ({name!a})"
    return name if name == " ".join(name.split()) else ascii(name)
