"""The source `imagenet`: ILSVRC2012 as its archives, which stay packed, or as unpacked trees.

https://image-net.org/challenges/LSVRC/2012/ has a tar of 1000 tars for training, one of flat files
for validation, and a devkit that says what those show; Kaggle has the same images as folders.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from data_prep.shard_set.keys import KEY_PATTERN, MAX_KEY_LENGTH
from data_prep.shard_set.tar_walk import DamagedTarError, Member, walk_tar
from data_prep.sources.imagenet_labels import (
    DEVKIT_NAME,
    SOLUTION_NAME,
    Devkit,
    read_devkit,
    read_truth,
)
from data_prep.sources.samples import Sample, SampleTable
from data_prep.sources.source import (
    RawImage,
    Source,
    SourceError,
    file_stamp,
    list_files,
    name_some,
)

logger = logging.getLogger(__name__)

NUM_CLASSES = 1000
_SIZE = 256
"""Of the network's training images: the short side, then the middle square."""

_ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
_PARENTS = ("", "ILSVRC/Data/CLS-LOC/", "Data/CLS-LOC/")
"""Where the folders `train` and `val` may lie; Kaggle's are deep down."""

_WNID = re.compile(r"n\d{8}")
_IN_ARCHIVE = re.compile(r"(.+\.tar):(\d+)\+(\d+):[^:]+")
"""Locator of a packed image: archive, offset and length of its content, its name."""

_NUM_WALKERS = 8
"""Threads that walk through inner archives: on network file systems each header is a round trip."""


@dataclass(frozen=True, slots=True)
class ImageReader:
    """Reads images below `root`: files, and members of archives by their position."""

    root: Path

    def read(self, sample: Sample) -> RawImage:
        match = _IN_ARCHIVE.fullmatch(sample.locator)
        if match is None:
            return (self.root / sample.locator).read_bytes()
        path, offset, num_bytes = self.root / match[1], int(match[2]), int(match[3])
        with path.open("rb", buffering=0) as file:
            content = os.pread(file.fileno(), num_bytes, offset)
        if len(content) != num_bytes:
            raise OSError(errno.EIO, f"it ends in or before {sample.locator}", str(path))
        return content

    def stamp(self, sample: Sample) -> int:
        """Of the file, or of the archive that holds it."""
        match = _IN_ARCHIVE.fullmatch(sample.locator)
        return file_stamp(self.root / (sample.locator if match is None else match[1]))


@dataclass(frozen=True, slots=True)
class _Packed:
    """An archive, or one inside it: the bytes from `start` to `stop` of the file `name`."""

    name: str
    start: int
    stop: int


_Place = _Packed | str
"""Where images lie: in an archive, or in a folder; names are relative to the input's."""


def open_imagenet(root: Path, *, num_classes: int = NUM_CLASSES) -> Source:
    """ILSVRC2012 from the folder `root`, whose archives need not be unpacked.

    Training images come from `ILSVRC2012_img_train.tar`, or from a folder `train` with folders
    WNID or archives WNID.tar; validation images from `ILSVRC2012_img_val.tar`, or from a folder
    `val` with folders WNID or all images in one. Labels are the places of the sorted WNIDs; those
    of flat validation images come from the devkit, or from Kaggle's table.
    Raises `SourceError` if anything is missing, damaged, or contradicts the rest.
    """
    if not root.is_dir():
        raise SourceError(
            f"--input {root} is not a folder; expected one that holds {_ARCHIVES['train']}, "
            f"{_ARCHIVES['val']} and {DEVKIT_NAME}.tar.gz, or train/ and val/"
        )
    train, val = _find(root, "train"), _find(root, "val")
    places = _find_classes(root, train)
    if len(places) != num_classes:
        raise SourceError(
            f"{root / train} has {len(places)} classes; expected {num_classes} "
            "(--num-classes): is it whole?"
        )
    devkit = read_devkit(root)
    splits = {"train": _list_classes(root, places, is_train=True)}
    if devkit is not None:
        _check_train(root / train, tuple(places), splits["train"], devkit)
    splits["val"] = _list_val(root, val, tuple(places), devkit)
    for split, samples in splits.items():
        if repeated := samples.repeated_keys():
            raise SourceError(
                f"{root / (train if split == 'train' else val)} has several images of one name "
                f"({name_some(repeated)}): remove the copies"
            )
    return Source(
        name="imagenet",
        class_names=tuple(places),
        splits=splits,
        reader=ImageReader(root),
        default_encoding="jpeg",
        default_size=_SIZE,
    )


def _find(root: Path, split: str) -> str:
    """The archive or the folder of a split, relative to `root`."""
    archive = _ARCHIVES[split]
    found = [archive] if (root / archive).is_file() else []
    found += [f"{parent}{split}" for parent in _PARENTS if (root / parent / split).is_dir()]
    if not found:
        raise SourceError(f"--input {root} has neither {archive} nor a folder {split}/")
    for other in found[1:]:
        logger.warning("%s is left out: the split '%s' is read from %s", other, split, found[0])
    return found[0]


def _find_classes(root: Path, name: str) -> dict[str, _Place]:
    """The place of each class of a split, by WNID, sorted; empty if the folder is flat."""
    path = root / name
    places: dict[str, _Place] = {}
    others = []
    for entry, place in _entries(root, name):
        wnid = entry.removesuffix(".tar")
        if not _WNID.fullmatch(wnid):
            others.append(entry)
        elif wnid in places:
            raise SourceError(f"{path} has the class {wnid} twice: remove one")
        else:
            places[wnid] = place
    if others and (places or path.is_file()):
        raise SourceError(
            f"{path} holds {name_some(others)} among its classes; expected nothing but WNIDs, "
            "like n01440764"
        )
    return dict(sorted(places.items()))


def _entries(root: Path, name: str) -> Iterator[tuple[str, _Place]]:
    """Names and places of what an archive or a folder holds."""
    if (root / name).is_file():
        for member in _members(root, _whole(root, name)):
            stop = member.offset + member.num_bytes
            yield _last(member.name), _Packed(name, member.offset, stop)
        return
    with os.scandir(root / name) as entries:
        for entry in entries:
            inside = f"{name}/{entry.name}"
            if entry.name.startswith("."):
                continue
            if not (entry.is_dir() or entry.is_file()):  # reading a pipe would wait for ever
                raise SourceError(
                    f"{entry.path} is a broken link or another thing that is neither a folder nor "
                    "a file: remove it, or put there what it stands for"
                )
            yield entry.name, inside if entry.is_dir() else _whole(root, inside)


def _whole(root: Path, name: str) -> _Packed:
    return _Packed(name, 0, (root / name).stat().st_size)


def _members(root: Path, place: _Packed) -> Iterator[Member]:
    """The files in an archive, without the hidden ones; reads its headers only."""
    path = root / place.name
    with path.open("rb", buffering=0) as file:
        try:
            for member in walk_tar(file.fileno(), place.start, place.stop):
                if _is_file(member, file.fileno(), path):
                    yield member
        except DamagedTarError as error:
            raise SourceError(
                f"{_describe(root, place)} is damaged, {error}: download it again"
            ) from None


def _is_file(member: Member, handle: int, path: Path) -> bool:
    if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
        return not _last(member.name).startswith(".")
    if member.type == tarfile.XHDTYPE:
        fields = os.pread(handle, member.num_bytes, member.offset)
        is_harmless = b" path=" not in fields and b" size=" not in fields
    else:
        is_harmless = member.type in (tarfile.DIRTYPE, tarfile.XGLTYPE)
    if not is_harmless:
        raise SourceError(
            f"{path} holds {member.name}, which is no plain file (type {member.type!r}); the "
            "official archive has no such thing: download it again"
        )
    return False


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
    is_empty = True
    for name, locator in _files(root, place):
        key = name.partition(".")[0]
        is_key = KEY_PATTERN.fullmatch(key) and len(key) <= MAX_KEY_LENGTH
        if not (is_key and key.startswith(prefix)) or ":" in name:  # which locators are cut at
            raise SourceError(
                f"{_describe(root, place)} holds {name!a}; expected names like "
                f"{prefix or 'ILSVRC2012_val_'}00000001.JPEG"
            )
        is_empty = False
        yield key, locator
    if is_empty:
        raise SourceError(f"{_describe(root, place)} holds no image: download it again")


def _files(root: Path, place: _Place) -> Iterator[tuple[str, str]]:
    """Name and locator of every file in a place."""
    if isinstance(place, str):
        for name in list_files(root / place):
            yield name, f"{place}/{name}"
        return
    for member in _members(root, place):
        name = _last(member.name)
        yield name, f"{place.name}:{member.offset}+{member.num_bytes}:{name}"


def _last(path: str) -> str:
    """The name at the end of a member's path."""
    return path.rpartition("/")[2]


def _describe(root: Path, place: _Place) -> str:
    if isinstance(place, str):
        return str(root / place)
    if place == _whole(root, place.name):
        return str(root / place.name)
    return f"{root / place.name}, bytes {place.start} to {place.stop},"


def _check_train(path: Path, wnids: tuple[str, ...], samples: SampleTable, devkit: Devkit) -> None:
    """Compare the training images with what the devkit says of them."""
    if different := set(wnids) ^ set(devkit.num_train_images):
        raise SourceError(
            f"the classes of {path} and of the devkit differ: {name_some(different)} in only one "
            "of them; give files of one release"
        )
    counts = dict(zip(wnids, samples.count_labels(len(wnids)), strict=True))
    wrong = [
        f"{wnid} has {counts[wnid]} of {expected}"
        for wnid, expected in devkit.num_train_images.items()
        if counts[wnid] != expected
    ]
    if wrong:
        raise SourceError(
            f"{path} has other numbers of images than the devkit says ({name_some(wrong)}): it is "
            "not whole, or holds copies; convert a subset as 'folder'"
        )


def _list_val(root: Path, name: str, wnids: tuple[str, ...], devkit: Devkit | None) -> SampleTable:
    """The validation images with their labels, which are cross-checked where several tell them."""
    path = root / name
    truth = read_truth(root, devkit)
    places = {} if path.is_file() else _find_classes(root, name)
    if not places:
        return _label_flat(root, _whole(root, name) if path.is_file() else name, wnids, truth)
    if different := set(places) ^ set(wnids):
        raise SourceError(
            f"the classes of {path} and of the training images differ: {name_some(different)} in "
            "only one of them"
        )
    samples = _list_classes(root, places, is_train=False)
    if truth is not None:
        _check_keys(path, set(samples.keys()), truth)
        wrong = [sample.key for sample in samples if wnids[sample.label] != truth[sample.key]]
        if wrong:
            raise SourceError(
                f"{path} has images in folders of other classes than the ground truth says "
                f"({name_some(wrong)}): one of them is wrong"
            )
    return samples


def _label_flat(
    root: Path, place: _Place, wnids: tuple[str, ...], truth: Mapping[str, str] | None
) -> SampleTable:
    """Validation images that lie side by side: `truth` has the WNID of each."""
    path = root / (place if isinstance(place, str) else place.name)
    if truth is None:
        raise SourceError(
            f"{path} does not tell classes: put {DEVKIT_NAME}.tar.gz (or Kaggle's {SOLUTION_NAME}) "
            f"into {root}; the ground-truth file alone is not enough, as its numbers are the "
            "devkit's own"
        )
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    if unknown := set(truth.values()) - set(labels):
        raise SourceError(
            f"the ground truth of {path} names classes that have no training images: "
            f"{name_some(unknown)}"
        )
    files = list(_list(root, place))
    _check_keys(path, {key for key, _ in files}, truth)
    return SampleTable(Sample(key, labels[truth[key]], locator) for key, locator in files)


def _check_keys(path: Path, keys: set[str], truth: Mapping[str, str]) -> None:
    if different := keys ^ set(truth):
        raise SourceError(
            f"{path} has {len(keys)} images and the ground truth has {len(truth)}: "
            f"{name_some(different)} in only one of them"
        )
