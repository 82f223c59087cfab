"""The source `imagenet`: ILSVRC2012 as its archives, which stay packed, or as unpacked trees.

https://image-net.org/challenges/LSVRC/2012/ has a tar of 1000 tars for training, one of flat files
for validation, and a devkit that says what those show; Kaggle has the same images as folders.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from data_prep.shard_set.fields import name_some
from data_prep.shard_set.keys import KEY_PATTERN, MAX_KEY_LENGTH
from data_prep.shard_set.tar_walk import DamagedTarError, Member, reading, walk_tar
from data_prep.sources.imagenet_labels import (
    DEVKIT_NAME,
    SOLUTION_NAME,
    Devkit,
    check_train,
    read_devkit,
    read_truth,
)
from data_prep.sources.samples import Sample, SampleTable
from data_prep.sources.source import (
    FileReader,
    Source,
    SourceError,
    check_same,
    choose,
    list_files,
)

NUM_CLASSES = 1000
_SIZE = 256
"""Of the network's training images: the short side, then the middle square."""

_ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
_PARENTS = ("", "ILSVRC/Data/CLS-LOC/", "Data/CLS-LOC/")
"""Where the folders `train` and `val` may lie; Kaggle's are deep down."""

_CLASS = re.compile(r"(n\d{8})(\.tar)?")
"""A folder or archive of a class, named by its WNID."""
_FILE_TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_SKIPPED_TYPES = (tarfile.DIRTYPE, tarfile.XGLTYPE, tarfile.XHDTYPE)
"""Folders, times and owners: the official tars have none, repacked ones may."""

_NUM_WALKERS = 8
"""Threads that walk through inner archives: on network file systems each header is a round trip."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where images lie: a folder, an archive, or the bytes of an archive inside another."""

    name: str
    """Relative to the input's folder."""
    start: int = 0
    stop: int | None = None

    def describe(self, root: Path) -> str:
        inside = "" if self.stop is None else f", bytes {self.start} to {self.stop},"
        return f"{root / self.name}{inside}"


def open_imagenet(root: Path, *, num_classes: int = NUM_CLASSES) -> Source:
    """ILSVRC2012 from the folder `root`, whose archives need not be unpacked.

    Training images come from `ILSVRC2012_img_train.tar`, or from a folder `train` with folders
    WNID or archives WNID.tar; validation images from `ILSVRC2012_img_val.tar`, or from a folder
    `val` with folders WNID or all images in one. Labels are the places of the sorted WNIDs; those
    of flat validation images come from the devkit, or from Kaggle's table.
    Raises `SourceError` if anything is missing, damaged, or contradicts the rest.
    """
    names = {
        split: choose(root, split, [archive, *(f"{parent}{split}" for parent in _PARENTS)])
        for split, archive in _ARCHIVES.items()
    }
    places = _find_classes(root, names["train"])
    if len(places) != num_classes:
        raise SourceError(
            f"{root / names['train']} has {len(places)} classes; expected {num_classes} "
            "(--num-classes): is it whole?"
        )
    devkit = read_devkit(root)
    splits = {"train": _list_classes(root, places, is_train=True)}
    if devkit is not None:
        check_train(root / names["train"], tuple(places), splits["train"], devkit)
    splits["val"] = _list_val(root, names["val"], tuple(places), devkit)
    for split, samples in splits.items():
        if repeated := samples.repeated_keys():
            raise SourceError(
                f"{root / names[split]} has several images of one name ({name_some(repeated)}): "
                "remove the copies"
            )
    return Source(
        name="imagenet",
        class_names=tuple(places),
        splits=splits,
        reader=FileReader(root),
        default_encoding="jpeg",
        default_size=_SIZE,
    )


def _find_classes(root: Path, name: str) -> dict[str, _Place]:
    """The place of each class of a split, by WNID, sorted; empty if the folder is flat."""
    path = root / name
    if path.is_dir():
        inside = (entry.name for entry in path.iterdir() if not entry.name.startswith("."))
        entries = [(entry, _Place(f"{name}/{entry}")) for entry in inside]
    else:
        entries = [
            (entry, _Place(name, member.offset, member.offset + member.num_bytes))
            for entry, member in _members(root, _Place(name))
        ]
    places: dict[str, _Place] = {}
    others = []
    for entry, place in entries:
        match = _CLASS.fullmatch(entry)
        if match is None:
            others.append(entry)
        elif match[1] in places:
            raise SourceError(f"{path} has the class {match[1]} twice: remove one")
        else:
            places[match[1]] = place
    if others and (places or path.is_file()):
        raise SourceError(
            f"{path} holds {name_some(others)} among its classes; expected nothing but WNIDs, "
            "like n01440764"
        )
    return dict(sorted(places.items()))


def _members(root: Path, place: _Place) -> Iterator[tuple[str, Member]]:
    """Names and places of the files in an archive, without hidden ones; reads headers only."""
    path = root / place.name
    with path.open("rb", buffering=0) as file:
        stop = path.stat().st_size if place.stop is None else place.stop
        try:
            for member in walk_tar(reading(file.fileno()), place.start, stop):
                name = member.name.rpartition("/")[2]
                if member.type in _FILE_TYPES and not name.startswith("."):
                    yield name, member
                elif member.type not in (*_FILE_TYPES, *_SKIPPED_TYPES):
                    raise SourceError(
                        f"{path} holds {member.name}, which is not a plain file (type "
                        f"{member.type!r}) as in the official archive: download it again"
                    )
        except DamagedTarError as error:
            raise SourceError(
                f"{place.describe(root)} is damaged, {error}: download it again"
            ) from None


def _list_classes(root: Path, places: Mapping[str, _Place], *, is_train: bool) -> SampleTable:
    """The images of all classes, labelled by the place of their class."""

    def list_class(wnid: str, label: int) -> SampleTable:
        prefix = f"{wnid}_" if is_train else ""
        return SampleTable(
            Sample(key, label, locator) for key, locator in _list(root, places[wnid], prefix)
        )

    samples = SampleTable()
    with ThreadPoolExecutor(_NUM_WALKERS) as walkers:
        for part in walkers.map(list_class, places, range(len(places))):
            samples.extend(part)
    return samples


def _list(root: Path, place: _Place, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Key and locator of every image in a place; keys must begin with `prefix`."""
    if (root / place.name).is_dir():
        files = ((name, f"{place.name}/{name}") for name in list_files(root / place.name))
    else:
        files = (
            (name, f"{place.name}:{member.offset}+{member.num_bytes}:{name}")
            for name, member in _members(root, place)
        )
    is_empty = True
    for name, locator in files:
        key = name.partition(".")[0]
        is_key = KEY_PATTERN.fullmatch(key) and len(key) <= MAX_KEY_LENGTH
        if not (is_key and key.startswith(prefix)) or ":" in name:  # which locators are cut at
            raise SourceError(
                f"{place.describe(root)} holds {name!a}; expected names like "
                f"{prefix or 'ILSVRC2012_val_'}00000001.JPEG"
            )
        is_empty = False
        yield key, locator
    if is_empty:
        raise SourceError(f"{place.describe(root)} holds no image: download it again")


def _list_val(root: Path, name: str, wnids: tuple[str, ...], devkit: Devkit | None) -> SampleTable:
    """The validation images. Where several files say their labels, they must agree."""
    path = root / name
    truth = read_truth(root, devkit)
    places = {} if path.is_file() else _find_classes(root, name)
    if not places:
        return _label_flat(root, name, wnids, truth)
    check_same(f"the classes of {path} and of the training images", places, wnids)
    samples = _list_classes(root, places, is_train=False)
    if truth is not None:
        check_same(f"the images of {path} and of the ground truth", samples.keys(), truth)
        wrong = [sample.key for sample in samples if wnids[sample.label] != truth[sample.key]]
        if wrong:
            raise SourceError(
                f"{path} has images in folders of other classes than the ground truth says "
                f"({name_some(wrong)}): one of them is wrong"
            )
    return samples


def _label_flat(
    root: Path, name: str, wnids: tuple[str, ...], truth: Mapping[str, str] | None
) -> SampleTable:
    """Validation images that lie side by side: `truth` has the WNID of each."""
    if truth is None:
        raise SourceError(
            f"{root / name} does not say classes: put {DEVKIT_NAME}.tar.gz (or Kaggle's "
            f"{SOLUTION_NAME}) into {root}; the ground-truth file alone is not enough, as its "
            "numbers are the devkit's own"
        )
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    if unknown := set(truth.values()) - set(labels):
        raise SourceError(
            f"the ground truth of {root / name} names classes that have no training images: "
            f"{name_some(unknown)}"
        )
    files = list(_list(root, _Place(name)))
    keys = (key for key, _ in files)
    check_same(f"the images of {root / name} and of the ground truth", keys, truth)
    return SampleTable(Sample(key, labels[truth[key]], locator) for key, locator in files)
