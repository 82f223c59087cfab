"""Says what a path that is not a shard set seems to be, and what to give instead."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

INDEX_NAME = "index.json"
"""What the sets of MosaicML and LitData have for a manifest."""

_NOT_ADOPTED = (
    "shard sets of this kind cannot be used here: make one of the images they were made from, with "
    "'python -m data_prep shard'"
)
_ADOPT = "make a shard set of them with 'python -m data_prep adopt TARS --output SHARDS'"
_PARQUET = "make a shard set of it with 'python -m data_prep shard parquet --input PATH'"
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_RAW_NAMES = {
    "ILSVRC": "imagenet",
    "cifar-10-": "cifar10",
    "data_batch_1": "cifar10",
    "cifar-100-": "cifar100",
}
"""How names begin in the folders of raw data sets, and the source that reads them."""
_CLASS_OF_IMAGENET = re.compile(r"n\d{8}\.tar")
_OTHERS = {
    ".beton": "a .beton of ffcv: give the folder of the shard set that it was made from, and the "
    "file as --data.beton with --data.reader beton",
    ".parquet": f"a Parquet data set; {_PARQUET}",
    ".arrow": f"a data set of Hugging Face; {_NOT_ADOPTED}",
    ".tfrecord": f"a TFRecord data set; {_NOT_ADOPTED}",
    ".mdb": f"an LMDB; {_NOT_ADOPTED}",
}
"""What a file seems to be, by the end of its name."""


def describe_manifest(fields: Any) -> str | None:
    """What a JSON document without `format_version` is, or None if that is unknown."""
    match fields:
        case {"splits": dict()}:
            return (
                "an index of WebDataset tars as timm writes it, without the sample index, the "
                f"checksums and the statistics of a shard set; {_ADOPT}"
            )
        case {"chunks": list()}:
            return f"the index of a LitData set; {_NOT_ADOPTED}"
        case {"shards": list()}:
            return f"the index of a MosaicML Streaming (MDS) set; {_NOT_ADOPTED}"
        case {"shardlist": list()}:
            return f"the index of a WebDataset for wids; {_NOT_ADOPTED}"
    return None


def describe_path(path: Path) -> str | None:
    """What a file, or a folder without a manifest, seems to be; None if that is unknown."""
    if path.is_dir():
        return _describe_folder(path, sorted(entry.name for entry in path.iterdir()))
    if path.suffix == ".json":
        return f"a file of a shard set; give its folder, {path.parent}"
    if path.name.endswith(_TAR_SUFFIXES):
        return f"one tar; give the folder of its shard set, or, if it has none, {_ADOPT}"
    return _OTHERS.get(path.suffix)


def _describe_folder(path: Path, names: Collection[str]) -> str | None:
    for name in names:
        if (path / name / "_info.json").is_file():
            return f"it holds the shard set {name}: give {path / name}"
    for name in names:
        if name.endswith(".json"):
            with contextlib.suppress(OSError, ValueError, RecursionError):
                if (found := describe_manifest(json.loads((path / name).read_bytes()))) is not None:
                    return f"{name} in it is {found}"
    for beginning, source in _RAW_NAMES.items():
        if any(name.startswith(beginning) for name in names):
            return f"it seems to be raw data: {_make_of(source, path)}"
    if "train" in names and (train := path / "train").is_dir():
        entries = sorted(train.iterdir())
        if any(entry.is_dir() for entry in entries):
            what = "it seems to be a folder of images by split and class"
            return f"{what}: {_make_of('folder', path)}"
        inside = [entry.name for entry in entries]
        if any(map(_CLASS_OF_IMAGENET.fullmatch, inside)):
            return f"it seems to be raw data: {_make_of('imagenet', path)}"
        if (found := _describe_folder(train, inside)) is not None:
            return f"of its folder train: {found}"
    for name in names:
        if name.endswith(_TAR_SUFFIXES):
            return f"it holds tars ({name}), without an index; {_ADOPT}"
        if (found := _OTHERS.get(Path(name).suffix)) is not None:
            return f"{name} in it is {found}"
    return None


def _make_of(source: str, path: Path) -> str:
    words = f"shard {source} --input {path} --output SHARDS"
    return f"make a shard set of it with 'python -m data_prep {words}'"
