"""The sources `cifar10` and `cifar100`, on small archives in the official layout."""

from __future__ import annotations

import gzip
import logging
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.sources import apart
from data_prep.sources.cifar import open_cifar10, open_cifar100
from data_prep.sources.source import SourceError, read_files
from tests.data_prep.cifar_archive import (
    CIFAR10_NAMES,
    CIFAR100_NAMES,
    IMAGES_PER_BATCH,
    Files,
    cifar10_files,
    cifar100_files,
    dumps,
    make_batch,
    write_archive,
    write_unpacked,
)

FOLDER10, FOLDER100 = "cifar-10-batches-py", "cifar-100-python"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_archive(tmp_path / "cifar-10-python.tar.gz", FOLDER10, cifar10_files())


def test_cifar10_archive(archive: Path) -> None:
    source = open_cifar10(archive)
    assert source.class_names == tuple(name.decode() for name in CIFAR10_NAMES)
    assert len(source.splits["train"]) == 5 * IMAGES_PER_BATCH
    assert len(source.splits["val"]) == IMAGES_PER_BATCH
    assert source.default_encoding == "rgb"
    batch = make_batch(3, b"labels", len(CIFAR10_NAMES))
    sample = source.splits["train"][3 * IMAGES_PER_BATCH + 7]
    assert sample.key == "thing_s_003007"
    assert sample.label == batch[b"labels"][7]
    image = source.reader.read(sample)
    assert isinstance(image, np.ndarray)
    red, green, blue = batch[b"data"][7].reshape(3, 32, 32)
    np.testing.assert_array_equal(image, np.dstack([red, green, blue]))


def test_reader_survives_the_way_to_a_worker(archive: Path) -> None:
    source = open_cifar10(archive)
    sample = source.splits["val"][0]
    copy = pickle.loads(pickle.dumps(source.reader))
    np.testing.assert_array_equal(copy.read(sample), source.reader.read(sample))


def test_cifar100_has_its_fine_labels(tmp_path: Path) -> None:
    files = cifar100_files()
    source = open_cifar100(write_archive(tmp_path / "c.tar.gz", FOLDER100, files))
    assert source.class_names == tuple(name.decode() for name in CIFAR100_NAMES)
    labels = [sample.label for sample in source.splits["val"]]
    assert labels == make_batch(1, b"fine_labels", len(CIFAR100_NAMES))[b"fine_labels"]


@pytest.mark.parametrize("path", ["", FOLDER10])
def test_unpacked_is_the_same(tmp_path: Path, archive: Path, path: str) -> None:
    write_unpacked(tmp_path, FOLDER10, cifar10_files())
    unpacked = open_cifar10(tmp_path / path)
    for split, samples in open_cifar10(archive).splits.items():
        assert list(unpacked.splits[split]) == list(samples)


def test_repeated_file_names_get_different_keys(tmp_path: Path) -> None:
    files = cifar10_files()
    files["data_batch_2"] = files["data_batch_1"]
    source = open_cifar10(write_unpacked(tmp_path, FOLDER10, files))
    keys = [sample.key for sample in source.splits["train"]]
    assert len(set(keys)) == len(keys)


def test_other_md5_is_reported(archive: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        open_cifar10(archive)
    assert "the official cifar-10-python.tar.gz has c58f30108f718f92721af3b95e74349a" in caplog.text


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (eval, ("1 + 1",))


class Unfilled:
    """An array that has a shape, and nothing is stored of it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return np.empty(0).__reduce__()[0], (np.ndarray, (IMAGES_PER_BATCH, 3072), b"B")


def leave_images_out(files: Files) -> None:
    files["test_batch"] = dumps({**make_batch(1, b"labels", 5), b"data": Unfilled()})


def forbid(files: Files) -> None:
    files["data_batch_2"] = pickle.dumps(Evil())


def remove_batch(files: Files) -> None:
    del files["data_batch_3"]


def cut_batch(files: Files) -> None:
    files["test_batch"] = files["test_batch"][:500]


def lose_labels(files: Files) -> None:
    files["test_batch"] = dumps({b"data": np.zeros((2, 3072), np.uint8), b"filenames": []})


def change_shape(files: Files) -> None:
    batch = make_batch(1, b"labels", 5)
    files["test_batch"] = dumps({**batch, b"data": batch[b"data"][:, :3000].copy()})


def raise_label(files: Files) -> None:
    files["test_batch"] = dumps(make_batch(1, b"labels", 6))


def empty_batch(files: Files) -> None:
    content = {b"data": np.zeros((0, 3072), np.uint8), b"filenames": [], b"labels": []}
    files["test_batch"] = dumps(content)


def lose_names(files: Files) -> None:
    files["batches.meta"] = dumps({b"names": []})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (forbid, "data_batch_2 cannot be read: it asks for builtins.eval"),
        (remove_batch, "has no data_batch_3: is it another data set, or not whole"),
        (cut_batch, "test_batch cannot be read"),
        (lose_labels, "test_batch is not a batch of cifar10"),
        (change_shape, r"images uint8\[20, 3000\], 20 names .* expected .* as uint8\[n, 3072\]"),
        (raise_label, "labels up to 5; expected .* with labels from 0 to 4"),
        (leave_images_out, r"test_batch has images uint8\[0\], 20 names"),
        (empty_batch, "0 names and 0 labels .*; expected as many of each, at least one"),
        (lose_names, "batches.meta of .* holds no list of class names"),
    ],
)
def test_damaged_archive_is_refused(
    tmp_path: Path, spoil: Callable[[Files], None], message: str
) -> None:
    files = cifar10_files()
    spoil(files)
    with pytest.raises(SourceError, match=message):
        open_cifar10(write_archive(tmp_path / "c.tar.gz", FOLDER10, files))


def test_memory_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "_MOST_BYTES", 256 << 20)
    long_memo = b"\x80\x02Nr\xff\xff\xff\x02."  # 7 bytes that take 800 MB
    path = write_archive(tmp_path / "c.tar.gz", FOLDER10, cifar10_files())
    assert len(open_cifar10(path).class_names) == 5
    path = write_archive(path, FOLDER10, {**cifar10_files(), "batches.meta": long_memo})
    with pytest.raises(SourceError, match=r"c.tar.gz takes more than 268,435,456 bytes of memory"):
        open_cifar10(path)


@pytest.mark.slow
def test_an_archive_that_holds_a_file_often_is_unpacked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_archive(tmp_path / "c.tar.gz", "x", {"meta": b"m", "rest": bytes(64 << 20)})
    with tarfile.open(path) as archive:
        members = [*archive.getmembers()[:1] * 3000, archive.getmembers()[1]]
    packed = b"".join(each.tobuf() + b"m".ljust(512 * (each.size == 1), b"\0") for each in members)
    path.write_bytes(gzip.compress(packed + bytes(64 << 20), 1))
    unpacked, read = [0], gzip._GzipReader.read

    def count(reader: gzip._GzipReader, size: int = -1) -> bytes:
        content = read(reader, size)
        unpacked[0] += len(content)
        return content

    monkeypatch.setattr(gzip._GzipReader, "read", count)
    assert read_files(path, ["meta"]) == {"meta": b"m"}
    assert unpacked == [len(packed) + (64 << 20)]


def test_wrong_archive_is_refused(archive: Path) -> None:
    with pytest.raises(SourceError, match="has no meta, test, train: is it another data set"):
        open_cifar100(archive)


def test_missing_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"does not exist; expected cifar-10-python.tar.gz or"):
        open_cifar10(tmp_path / "c.tar.gz")


@pytest.mark.parametrize("keep", [0.0, 0.7])
def test_archive_that_was_not_loaded_whole_is_refused(archive: Path, keep: float) -> None:
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(SourceError, match=r"cannot be unpacked .* download it again"):
        open_cifar10(archive)
