"""The source `folder`: images in a folder for each class, in the layouts that people have."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_prep.shard_set import image_files
from data_prep.shard_set.fields import name_some
from data_prep.shard_set.image_files import Folder, is_image_file, scan, walk
from data_prep.shard_set.keys import make_keys
from data_prep.sources.samples import Sample, SampleTable
from data_prep.sources.source import FileReader, Source, SourceError, check_same
from data_prep.sources.splits import SPLIT_OF

_log = logging.getLogger(__name__)

_ANNOTATIONS = "val_annotations.txt"
"""Of Tiny ImageNet: a line for each image of val, its name and its class first."""
_IMAGES = "images"


@dataclass(frozen=True, slots=True)
class _Class:
    """A class of a split: names of its image files, relative to `folder`."""

    folder: Path
    files: list[str]


def open_folder(root: Path, *, nested: bool = False) -> Source:
    """The images below `root`, of which each class has a folder.

    The layouts are `train/CLASS/*` with `val/CLASS/*` (or other words of `SPLIT_OF`), that of Tiny
    ImageNet, and `CLASS/*` alone, which is train. A folder `images` that is all there is in a class
    is looked into; with `nested`, every folder is. Classes get their labels in the order of their
    names. Left out are hidden files, and files that neither by name nor by content are images.
    Raises `SourceError` if a class is empty or holds other things than files, the splits have
    different classes, or a class has an odd name or a doubtful place in the order.
    """
    if not root.is_dir():
        raise SourceError(
            f"--input {root} is not a folder; expected one that holds train/CLASS/* and val/CLASS/*"
        )
    left_out: list[str] = []
    splits = {
        split: _find_annotated(folder, left_out)
        if (folder / _ANNOTATIONS).is_file() and (folder / _IMAGES).is_dir()
        else {
            name: _Class(folder / folder_name, _list_images(folder / folder_name, nested, left_out))
            for name, folder_name in _find_classes(folder).items()
        }
        for split, folder in _find_splits(root).items()
    }
    if left_out:
        _log.warning("%s", image_files.left_out(root, left_out))
    if "val" in splits:
        check_same(
            f"the classes of train and {_find_splits(root)['val'].name} below {root}",
            map(_show_name, splits["train"]),
            map(_show_name, splits["val"]),
        )
    return Source(
        name="folder",
        class_names=tuple(splits["train"]),
        splits={split: _table(root, classes) for split, classes in splits.items()},
        reader=FileReader(root),
        default_encoding="jpeg",
    )


def _find_splits(root: Path) -> dict[str, Path]:
    """The folder of each split; where none is named after one, all of `root` is train."""
    found: dict[str, list[Path]] = {}
    for path in sorted(root.iterdir()):
        if (split := SPLIT_OF.get(path.name.lower())) is not None and path.is_dir():
            found.setdefault(split, []).append(path)
    train, val = found.get("train", []), found.get("val", []) + found.get("test", [])
    if not train and val:
        raise SourceError(f"{root} has no folder train/; expected train/CLASS/* with images")
    if len(train) > 1:
        raise SourceError(f"{train[0]} and {train[1]} are both the split 'train'; expected one")
    for other in val[1:]:
        _log.warning("%s is left out: %s is the split 'val'", other, val[0])
    return {"train": train[0] if train else root} | ({"val": val[0]} if val else {})


def _find_annotated(folder: Path, left_out: list[str]) -> dict[str, _Class]:
    """The classes of a folder whose images lie together, with a table of their classes."""
    table, images = folder / _ANNOTATIONS, folder / _IMAGES
    class_of: dict[str, str] = {}
    for number, line in enumerate(table.read_text("utf-8-sig", "replace").splitlines(), 1):
        name, *rest = line.split("\t")
        if not rest or name in class_of:
            raise SourceError(
                f"{table}, line {number} is {line!r}; expected an image, once, and its class with "
                "a tab between them"
            )
        class_of[name] = rest[0]
    there = set(_list_images(images, False, left_out))
    if different := there ^ set(class_of):
        raise SourceError(
            f"{len(different)} images are only in one of {table} and {images} "
            f"({name_some(different)}): copy both again"
        )
    classes: dict[str, _Class] = {}
    for name in sorted(class_of):
        classes.setdefault(class_of[name], _Class(images, [])).files.append(name)
    return {name: classes[name] for name in sorted(classes)}


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


def _list_images(folder: Path, nested: bool, left_out: list[str]) -> list[str]:
    """Names of the images of a class, relative to its folder, sorted."""
    found = scan(folder)
    files, folders = _files(found), found.folders
    has_inner = [path.name for path in folders] == [_IMAGES] and not any(map(is_image_file, files))
    if has_inner and not nested:  # as in Tiny ImageNet, where a table of boxes lies beside it
        left_out += map(str, files)
        found = scan(folders[0])
        files, folders = _files(found), found.folders
    if nested:
        files, folders = [path for inside in walk(folder) for path in _files(inside)], []
    if folders:
        raise SourceError(
            f"there are folders among the images ({name_some(map(str, folders))}): with --nested "
            "the images in them belong to the class, too; else move them up, and remove the rest"
        )
    images = [path for path in files if is_image_file(path)]
    left_out += map(str, set(files) - set(images))
    if not images:
        raise SourceError(
            f"the class folder {folder} is empty: add images, or remove the class from both splits"
        )
    return sorted(str(path.relative_to(folder)) for path in images)


def _files(found: Folder) -> list[Path]:
    """The files of a folder that holds nothing but files and folders."""
    if found.others:
        raise SourceError(
            "among the images are broken links or other things that are not files "
            f"({name_some(map(str, found.others))}): remove them"
        )
    return found.files


def _table(root: Path, classes: Mapping[str, _Class]) -> SampleTable:
    """The samples of one split."""
    found = [
        (f"{name}/{file}", label, str((of_class.folder / file).relative_to(root)))
        for label, (name, of_class) in enumerate(classes.items())
        for file in of_class.files
    ]
    keys = make_keys([name for name, _, _ in found])
    return SampleTable(
        Sample(key, label, locator) for key, (_, label, locator) in zip(keys, found, strict=True)
    )


def _show_name(name: str) -> str:
    """The name, and where it looks like another one, or spaces are at its ends, how it is spelt."""
    if not name.isascii():
        return f"{name} ({name!a})"
    return name if name == " ".join(name.split()) else ascii(name)
