"""What is given for a shard set and is none is called by its name, with what to give instead."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.shard_set.manifest import ShardSetError, read_manifest
from data_prep.sharding import Cifar10, Folder, ImageNet, Parquet, WebDataset
from data_prep.sources.source import SourceError
from tests.data_prep.raw_data import write_folder

MDS = {"shards": [{"format": "mds", "version": 2}], "version": 2}


def write_json(name: str, fields: object) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        (path / name).write_text(json.dumps(fields))
        return path

    return write


def touch(*names: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        for name in names:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).touch()
        return path

    return make


def file_of(name: str) -> Callable[[Path], Path]:
    return lambda path: touch(name)(path) / name


def of_timm(path: Path) -> Path:
    splits = {"train": {"name": "train", "filenames": ["a.tar"], "shard_lengths": [3]}}
    return write_json("_info.json", {"splits": splits})(path)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (of_timm, r"_info\.json is not the manifest .* WebDataset tars as timm writes it"),
        (write_json("_info.json", {"a": 1}), "is of another program; make one with"),
        (write_json("_info.json", {"format_version": 2}), "format version 2; expected 1"),
        (write_json("index.json", MDS), r"index\.json in it is the index of a MosaicML"),
        (write_json("index.json", {"chunks": []}), r"index\.json in it is the index of a LitData"),
        (write_json("set.json", {"shardlist": []}), "is the index of a WebDataset for wids"),
        (touch("000.tar", "001.tar"), r"it holds tars \(000\.tar\), without an index"),
        (touch("a.parquet"), r"a\.parquet in it is a Parquet data set"),
        (touch("data.mdb", "lock.mdb"), r"data\.mdb in it is an LMDB"),
        (touch("ILSVRC2012_img_train.tar"), r"raw data: .* shard imagenet --input .*/given "),
        (touch("cifar-10-python.tar.gz"), "raw data: .* shard cifar10 --input"),
        (touch("shards/_info.json"), "it holds the shard set shards: give .*/given/shards"),
        (write_folder, r"folder of images by split and class: .* shard folder --input .*/given "),
        (
            touch("train/000.tar", "val/000.tar"),
            r"of its folder train: it holds tars \(000\.tar\), w",
        ),
        (touch("train/a.parquet"), r"of its folder train: a\.parquet in it is a Parquet data set"),
        (touch("data/train-0.parquet"), r"of its folder data: .* parquet --input .*/given -"),
        (
            touch("cat/1.jpg", "dog/2.jpg"),
            "images by class: .* folder --input .*/given ",
        ),
        (touch("labels.csv"), r"labels\.csv in it is a table.* table --input .*/given/labels\.csv"),
        (touch("train/n01440764.tar"), "raw data: .* shard imagenet --input .*/given "),
        (touch("train/_info.json"), "it holds the shard set train: give .*/given/train"),
        (touch("notes.txt"), r"has no _info\.json; make one .* or rerun the conversion that was"),
        (file_of("a.beton"), r"is a file; .* seems to be a \.beton of ffcv: .*as --data\.beton"),
        (file_of("a.tar"), "is a file; .* seems to be one tar; give the folder of its shard set"),
        (file_of("_info.json"), "is a file; .*a file of a shard set; give its folder, .*/given$"),
        (file_of("a.txt"), "is a file; expected the folder of a shard set$"),
    ],
)
def test_it_is_called_by_its_name(tmp_path: Path, make: Callable[[Path], Path], what: str) -> None:
    (tmp_path / "given").mkdir()
    with pytest.raises(ShardSetError, match=what):
        read_manifest(make(tmp_path / "given"))


@pytest.mark.parametrize(
    ("kind", "make", "what"),
    [
        (Folder, touch("data/train-0.parquet"), r"is empty.*; of .*shard parquet --input"),
        (Parquet, touch("train/cat/1.jpg", "val/cat/1.jpg"), r"\.parquet; .*shard folder --input"),
        (Parquet, file_of("a.csv"), r"\.parquet; .* it seems to be a table.*shard table --input"),
        (WebDataset, touch("cat/1.jpg"), r"no files \*\.tar; .*shard folder --input"),
        (WebDataset, touch("train-0.tar"), r"it is no tar|cut off after the start[^;]*; copy it"),
        (ImageNet, touch("train/cat/1.jpg", "val/cat/1.jpg"), "shard folder --input"),
        (Cifar10, touch("cifar-100-python.tar.gz"), "shard cifar100 --input"),
    ],
)
def test_a_source_says_which_other_one_reads_what_it_was_given(
    tmp_path: Path, kind: type[Any], make: Callable[[Path], Path], what: str
) -> None:
    (tmp_path / "given").mkdir()
    command = kind(input=make(tmp_path / "given"), shards=tmp_path / "shards")
    with pytest.raises(SourceError, match=what):
        command.opened()
