"""Fuzzers of the files that raw data sets come in."""

from __future__ import annotations

import functools
import gzip
from pathlib import Path

import numpy as np

from data_prep.sources.cifar import open_cifar10
from data_prep.sources.imagenet import open_imagenet
from data_prep.sources.imagenet_labels import SOLUTION_NAME, Devkit, read_devkit, read_truth
from data_prep.sources.source import Source, SourceError
from tests.data_prep.cifar_archive import cifar10_files, write_archive, write_unpacked
from tests.data_prep.imagenet_archive import (
    DEVKIT_NAME,
    GROUND_TRUTH_NAME,
    TRAIN_NAME,
    make_imagenet,
    write_archives,
    write_files,
)
from tests.fuzz.harness import Harness, Target, check_types, expect
from tests.fuzz.mutation import change_bytes, change_tar, change_text, inside_gzip, inside_tar


def check_source(source: Source, *, all_images: bool = False) -> None:
    """Raise `WrongValueError` unless each sample has a key of its own, a class, and an image."""
    check_types(source.class_names, tuple[str, ...])
    for samples in source.splits.values():
        found = [samples[row] for row in range(len(samples))]
        expect(found, "an empty split")
        expect(len({sample.key for sample in found}) == len(found), "keys are there twice")
        for sample in found if all_images else found[:1]:
            expect(0 <= sample.label < len(source.class_names), f"label {sample.label}")
            image = source.reader.read(sample)
            expect(isinstance(image, bytes | np.ndarray), f"an image is a {type(image)}")


def _cifar10(folder: Path) -> Target:
    path = write_archive(folder / "x.tar.gz", "cifar-10-batches-py", cifar10_files())

    def read(content: bytes) -> None:
        path.write_bytes(content)
        check_source(open_cifar10(path), all_images=True)

    return Target([gzip.compress(gzip.decompress(path.read_bytes()), 1, mtime=0)], read)


def _cifar10_folder(folder: Path) -> Target:
    """One pickle of it."""
    files = cifar10_files()
    path = write_unpacked(folder, "cifar-10-batches-py", files)
    names = ("data_batch_1", "batches.meta")

    def read(content: bytes) -> None:
        name = names[content[0] % 2] if content else names[0]
        (path / name).write_bytes(content[1:])
        try:
            check_source(open_cifar10(path), all_images=True)
        finally:
            (path / name).write_bytes(files[name])

    return Target([bytes([row]) + files[name] for row, name in enumerate(names)], read)


def _imagenet(folder: Path) -> Target:
    """The archive of archives."""
    data = make_imagenet(num_classes=2, num_train=2, num_val=3)
    write_archives(folder, data)
    path = folder / TRAIN_NAME

    def read(content: bytes) -> None:
        path.write_bytes(content)
        check_source(open_imagenet(folder, num_classes=2), all_images=True)

    return Target([path.read_bytes()], read)


def _devkit_file(name: str, folder: Path) -> Target:
    """Of the unpacked devkit; its numbers are those of classes."""
    data = make_imagenet()
    write_files(folder, data.devkit)
    path = folder / DEVKIT_NAME / "data" / name

    def read(content: bytes) -> None:
        path.write_bytes(content)
        _check_devkit(read_devkit(folder))

    return Target([path.read_bytes()], read)


def _check_devkit(devkit: Devkit | None) -> None:
    expect(devkit is not None, "there is a devkit, and none is read")
    assert devkit is not None
    expect(set(devkit.truth.values()) <= devkit.num_train_images.keys(), "an image of no class")
    check_types(dict(devkit.num_train_images), dict[str, int])


def _devkit(folder: Path) -> Target:
    write_archives(folder, make_imagenet())
    path = folder / f"{DEVKIT_NAME}.tar.gz"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        _check_devkit(read_devkit(folder))

    return Target([path.read_bytes()], read)


def _solution(folder: Path) -> Target:
    path = folder / SOLUTION_NAME
    rows = [f"ILSVRC2012_val_{row:08d},n0144{row:04d} 1 2 3 4" for row in range(1, 9)]

    def read(content: bytes) -> None:
        path.write_bytes(content)
        truth = read_truth(folder, None)
        check_types(truth, dict[str, str])
        expect("" not in (truth or {}).values(), truth)

    return Target(["\n".join(["ImageId,PredictionString", *rows]).encode()], read)


HARNESSES = (
    Harness(
        name="cifar10",
        prepare=_cifar10,
        errors=(SourceError,),
        changes=(inside_gzip((change_tar, inside_tar((change_bytes,)))),),
    ),
    Harness(name="cifar10-folder", prepare=_cifar10_folder, errors=(SourceError,)),
    Harness(
        name="imagenet",
        prepare=_imagenet,
        errors=(SourceError,),
        changes=(change_tar, inside_tar((change_tar, change_bytes))),
    ),
    Harness(
        name="devkit",
        prepare=_devkit,
        errors=(SourceError,),
        changes=(inside_gzip((change_tar, inside_tar((change_text, change_bytes)))),),
    ),
    Harness(
        name="meta",
        prepare=functools.partial(_devkit_file, "meta.mat"),
        errors=(SourceError,),
    ),
    Harness(
        name="ground-truth",
        prepare=functools.partial(_devkit_file, GROUND_TRUTH_NAME),
        errors=(SourceError,),
        changes=(change_text,),
    ),
    Harness(name="solution", prepare=_solution, errors=(SourceError,), changes=(change_text,)),
)
