"""Fuzzers of tables of images and labels, and of single labels."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.shard_set.foreign_tar import ForeignTarError, find_label
from data_prep.shard_set.tar_walk import Member
from data_prep.sources.folder import open_folder
from data_prep.sources.labels import read_class_names
from data_prep.sources.parquet import open_parquet
from data_prep.sources.source import SourceError
from data_prep.sources.table import TableColumns, open_table
from tests.data_prep.sources.test_parquet import CONTENTS, no_progress, write_parquet
from tests.fuzz.harness import Harness, Target, check_types, expect
from tests.fuzz.mutation import change_json, change_text
from tests.fuzz.raw_files import check_source

_CLASSES = ("cat", "dog")

_TABLES = (
    "path,label,split\n"
    + "".join(
        f'"{row}.jpg",{_CLASSES[row % 2]},{("train", "val")[row // 3]}\n' for row in range(5)
    ),
    "file;class\r\n" + "".join(f"{row}.jpg;{row % 2}\r\n" for row in range(5)),
)


def _csv_table(folder: Path) -> Target:
    path = folder / "table.csv"
    for row, content in enumerate(CONTENTS[:5]):
        (folder / f"{row}.jpg").write_bytes(content)

    def read(content: bytes) -> None:
        path.write_bytes(content)
        check_source(open_table(path, folder, TableColumns()), all_images=True)

    return Target([*(text.encode() for text in _TABLES), _TABLES[0].encode("utf-16")], read)


def _class_names(folder: Path) -> Target:
    path = folder / "names.txt"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        names = read_class_names(path)
        expect(len(set(names)) == len(names) > 0, names)
        expect(all(name.isprintable() and name == name.strip() for name in names), names)

    return Target(["\n".join((*_CLASSES, "Zügel", "a b")).encode()], read)


def _parquet(folder: Path) -> Target:
    corpus = []
    for compression in ("none", "snappy", "zstd"):
        path = write_parquet(
            folder / "x.parquet", CONTENTS, [0, 1] * 3, compression=compression, row_group_size=4
        )
        corpus.append(path.read_bytes())
    path.unlink()
    inputs, unpacked = folder / "in", folder / "unpacked"
    inputs.mkdir()

    def read(content: bytes) -> None:
        (inputs / "train.parquet").write_bytes(content)
        source = open_parquet(inputs, unpacked)
        assert source.prepare is not None
        try:
            source.prepare(1, no_progress)
            check_source(source, all_images=True)
        finally:
            for left in unpacked.glob("*"):
                left.unlink()

    return Target(corpus, read)


def _parquet_table(folder: Path) -> Target:
    """With paths of images, and not the images."""
    path = folder / "table.parquet"
    for row, content in enumerate(CONTENTS[:5]):
        (folder / f"{row}.jpg").write_bytes(content)
    corpus = []
    labels: Sequence[object]
    for labels in ([0, 1, 0, 1, 0], ["dog", "cat", "dog", "cat", "dog"]):
        columns = {"path": [f"{row}.jpg" for row in range(5)], "label": labels}
        pq.write_table(pa.table(columns), path)
        corpus.append(path.read_bytes())

    def read(content: bytes) -> None:
        path.write_bytes(content)
        check_source(open_table(path, folder, TableColumns()), all_images=True)

    return Target(corpus, read)


def _annotations(folder: Path) -> Target:
    """Of Tiny ImageNet's validation images."""
    for name in _CLASSES:
        (folder / "train" / name).mkdir(parents=True)
        (folder / "train" / name / "x.jpg").write_bytes(CONTENTS[0])
    (folder / "val/images").mkdir(parents=True)
    for row, content in enumerate(CONTENTS[:4]):
        (folder / "val/images" / f"{row}.jpg").write_bytes(content)
    path = folder / "val/val_annotations.txt"
    rows = [f"{row}.jpg\t{_CLASSES[row % 2]}\t0\t0\t9\t9" for row in range(4)]

    def read(content: bytes) -> None:
        path.write_bytes(content)
        check_source(open_folder(folder), all_images=True)

    return Target(["\n".join(rows).encode()], read)


_SUFFIXES = ("cls", "cls.txt", "json")


def _label_member(folder: Path) -> Target:
    """Of a sample in a tar of others: a whole number, or the name of a class."""

    def read(content: bytes) -> None:
        suffix, text = _SUFFIXES[content[0] % 3 if content else 0], content[1:]
        members = {suffix: Member("x", 0, len(text))}

        def read_at(num_bytes: int, offset: int) -> bytes:
            return text[offset : offset + num_bytes]

        label = find_label("x", folder, read_at, members, None)
        check_types(label, int | str)
        expect(suffix == "json" or str(label).isprintable(), f"{label!a}")

    return Target([b"\x000", b"\1 cat \n", b'\2{"label": 3, "x": ["dog"]}'], read)


def _change_label(chance: random.Random, content: bytes) -> bytes:
    return content[:1] + change_json(chance, content[1:])


HARNESSES = (
    Harness(name="csv-table", prepare=_csv_table, errors=(SourceError,), changes=(change_text,)),
    Harness(
        name="annotations", prepare=_annotations, errors=(SourceError,), changes=(change_text,)
    ),
    Harness(
        name="class-names", prepare=_class_names, errors=(SourceError,), changes=(change_text,)
    ),
    Harness(name="parquet", prepare=_parquet, errors=(SourceError,)),
    Harness(name="parquet-table", prepare=_parquet_table, errors=(SourceError,)),
    Harness(
        name="label-member",
        prepare=_label_member,
        errors=(ForeignTarError,),
        changes=(_change_label, change_text),
    ),
)
