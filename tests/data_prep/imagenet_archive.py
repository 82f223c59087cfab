"""Small copies of ILSVRC2012 in the layout of the official archives."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from tests.data_prep.raw_data import REPOSITORY, jpeg

SAMPLE = REPOSITORY.parent / "shared/data/imagenet-sample.tar"
"""A real training image of each of the 1000 classes."""

Files = Mapping[str, bytes]

TRAIN_NAME = "ILSVRC2012_img_train.tar"
VAL_NAME = "ILSVRC2012_img_val.tar"
DEVKIT_NAME = "ILSVRC2012_devkit_t12"
GROUND_TRUTH_NAME = "ILSVRC2012_validation_ground_truth.txt"


@dataclass(frozen=True, slots=True)
class ImageNet:
    """A data set: files by WNID, validation files by name, and what each of those shows."""

    train: Mapping[str, Files]
    val: Files
    val_wnids: Sequence[str]
    """In the order of the validation files' names."""
    order: Sequence[str]
    """WNIDs in the order in which the devkit counts them, from 1."""

    @property
    def ground_truth(self) -> bytes:
        numbers = [self.order.index(wnid) + 1 for wnid in self.val_wnids]
        return "".join(f"{number}\n" for number in numbers).encode()

    @property
    def meta(self) -> bytes:
        counts = {wnid: len(files) for wnid, files in self.train.items()}
        return make_meta([(wnid, counts.get(wnid, 0)) for wnid in self.order])

    @property
    def devkit(self) -> Files:
        return {
            f"{DEVKIT_NAME}/data/meta.mat": self.meta,
            f"{DEVKIT_NAME}/data/{GROUND_TRUTH_NAME}": self.ground_truth,
            f"{DEVKIT_NAME}/readme.txt": b"read me",
        }


def make_imagenet(num_classes: int = 4, num_train: int = 5, num_val: int = 9) -> ImageNet:
    """Generated images; the devkit counts the classes backwards."""
    wnids = [f"n{11111111 * (label + 1)}" for label in range(num_classes)]
    train = {
        wnid: {
            f"{wnid}_{7 * number + 1}.JPEG": jpeg(seed=100 * label + number, height=30, width=44)
            for number in range(num_train)
        }
        for label, wnid in enumerate(wnids)
    }
    val = {val_name(row): jpeg(seed=5000 + row) for row in range(1, num_val + 1)}
    val_wnids = [wnids[(3 * row + 1) % num_classes] for row in range(num_val)]
    return ImageNet(train, val, val_wnids, wnids[::-1])


def val_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def make_meta(low_level: Iterable[tuple[str, float]]) -> bytes:
    """A `meta.mat` with those WNIDs and numbers of images, and a class above them all."""
    fields = [
        ("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"),
        ("num_children", "O"), ("children", "O"), ("wordnet_height", "O"),
        ("num_train_images", "O"),
    ]  # fmt: skip
    leaves = list(low_level)
    rows: list[tuple[Any, ...]] = [
        (float(number), wnid, "thing, object", "it is", 0.0, np.empty((0, 0)), 0.0, float(count))
        for number, (wnid, count) in enumerate(leaves, 1)
    ]
    above = np.arange(1.0, len(leaves) + 1)
    total = float(sum(count for _, count in leaves))
    rows.append((len(leaves) + 1.0, "n00001740", "entity", "all", above[-1], above, 1.0, total))
    buffer = io.BytesIO()
    synsets = np.array(rows, fields).reshape(-1, 1)
    savemat(buffer, {"synsets": synsets}, do_compression=True)
    return buffer.getvalue()


def tar(files: Files, mode: str = "w:", form: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=form) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write_archives(root: Path, data: ImageNet) -> Path:
    """The three official files."""
    root.mkdir(parents=True, exist_ok=True)
    inner = {f"{wnid}.tar": tar(files) for wnid, files in data.train.items()}
    (root / TRAIN_NAME).write_bytes(tar(inner))
    (root / VAL_NAME).write_bytes(tar(data.val))
    (root / f"{DEVKIT_NAME}.tar.gz").write_bytes(tar(data.devkit, "w:gz"))
    return root


def write_files(folder: Path, files: Files) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_train_tree(folder: Path, data: ImageNet) -> None:
    for wnid, files in data.train.items():
        write_files(folder / wnid, files)


def write_val_tree(folder: Path, data: ImageNet) -> None:
    for wnid, (name, content) in zip(data.val_wnids, data.val.items(), strict=True):
        write_files(folder / wnid, {name: content})


def read_sample() -> dict[str, bytes]:
    """The real images by WNID."""
    with tarfile.open(SAMPLE) as archive:
        files = {member.name: archive.extractfile(member) for member in archive}
        return {name[:9]: file.read() for name, file in files.items() if file is not None}
