"""One small ImageNet in every layout that the source reads, and what is in it."""

from __future__ import annotations

import random
import tarfile
from pathlib import Path

from data_prep.sources.imagenet import open_imagenet
from data_prep.sources.source import Source
from tests.data_prep.imagenet_archive import (
    DEVKIT_NAME,
    GROUND_TRUTH_NAME,
    TRAIN_NAME,
    VAL_NAME,
    ImageNet,
    make_imagenet,
    tar,
    write_archives,
    write_files,
    write_train_tree,
    write_val_tree,
)
from tests.data_prep.raw_data import jpeg

DATA = make_imagenet()


def open_small(root: Path) -> Source:
    return open_imagenet(root, num_classes=len(DATA.train))


def contents(source: Source) -> dict[tuple[str, str], tuple[int, object]]:
    """Label and image of every sample, by split and key."""
    return {
        (split, sample.key): (sample.label, source.reader.read(sample))
        for split, samples in source.splits.items()
        for sample in samples
    }


def expected_contents(data: ImageNet) -> dict[tuple[str, str], tuple[int, object]]:
    wnids = sorted(data.train)
    train = {
        ("train", name.removesuffix(".JPEG")): (wnids.index(wnid), content)
        for wnid, files in data.train.items()
        for name, content in files.items()
    }
    val = {
        ("val", name.removesuffix(".JPEG")): (wnids.index(wnid), content)
        for wnid, (name, content) in zip(data.val_wnids, data.val.items(), strict=True)
    }
    return {**train, **val}


def write_devkit(root: Path, data: ImageNet) -> None:
    (root / f"{DEVKIT_NAME}.tar.gz").write_bytes(tar(data.devkit, "w:gz"))


def unpacked(root: Path) -> None:
    write_train_tree(root / "train", DATA)
    write_val_tree(root / "val", DATA)


def unpacked_with_flat_val(root: Path) -> None:
    write_train_tree(root / "train", DATA)
    write_files(root / "val", DATA.val)
    write_files(root, DATA.devkit)


def unpacked_with_devkit(root: Path) -> None:
    unpacked(root)
    write_devkit(root, DATA)


def folder_of_inner_archives(root: Path) -> None:
    write_files(root / "train", {f"{wnid}.tar": tar(files) for wnid, files in DATA.train.items()})
    write_val_tree(root / "val", DATA)


def kaggle(root: Path) -> None:
    write_train_tree(root / "ILSVRC/Data/CLS-LOC/train", DATA)
    write_files(root / "ILSVRC/Data/CLS-LOC/val", DATA.val)
    write_files(root / "ILSVRC/Data/CLS-LOC/test", {"ILSVRC2012_test_00000001.JPEG": jpeg()})
    rows = [
        f"{name.removesuffix('.JPEG')},{wnid} 85 1 499 272 {wnid} 1 1 2 2"
        for wnid, name in zip(DATA.val_wnids, DATA.val, strict=True)
    ]
    random.Random(0).shuffle(rows)
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "\n".join(rows))


def packed_by_others(root: Path) -> None:
    """With folders, hidden files and times of their own in the archives."""
    inner = {
        f"{wnid}.tar": tar({f"./{wnid}/{name}": files[name] for name in files})
        for wnid, files in DATA.train.items()
    }
    write_archives(root, DATA)
    (root / TRAIN_NAME).write_bytes(tar({"._junk": b"", **inner}))
    folder, archive = root.parent / "files", root / VAL_NAME
    write_files(folder, DATA.val)
    with tarfile.open(archive, "w:", format=tarfile.PAX_FORMAT) as packed:
        packed.add(folder, "val")  # times are fractions, which need extended headers


def write_ground_truth(root: Path, content: bytes) -> None:
    write_archives(root, DATA)
    devkit = {**DATA.devkit, f"{DEVKIT_NAME}/data/{GROUND_TRUTH_NAME}": content}
    (root / f"{DEVKIT_NAME}.tar.gz").write_bytes(tar(devkit, "w:gz"))
