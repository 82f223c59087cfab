"""Says what a path that is not a shard set seems to be, and what to give instead."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

from data_prep.shard_set.files import as_command
from data_prep.shard_set.image_files import is_image
from data_prep.shard_set.typed import read_json

INDEX_NAME = "index.json"
"""What the sets of MosaicML and LitData have for a manifest."""

WORK_FOLDER = ".conversion"
"""Beside the shards of a conversion that is not finished."""

_NOT_ADOPTED = (
    "shard sets of this kind cannot be used here: make one of the images they were made from, with "
    "'python -m data_prep shard'"
)
_ADOPT = "make a shard set of them with 'python -m data_prep adopt TARS --output SHARDS'"
_FEW = 10
"""Files of a folder that are looked at."""
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_RAW_NAMES = {
    "ILSVRC": "imagenet",
    "cifar-10-": "cifar10",
    "data_batch_1": "cifar10",
    "cifar-100-": "cifar100",
}
"""How names begin in the folders of raw data sets, and the source that reads them."""
_CLASS_OF_IMAGENET = re.compile(r"n\d{8}\.tar")
_TABLES = {
    ".parquet": ("a Parquet data set", "parquet"),
    ".csv": ("a table, perhaps of images", "table"),
    ".tsv": ("a table, perhaps of images", "table"),
}
"""What a file is by the end of its name, and the source that reads it."""
_OTHERS = {
    ".beton": "a .beton of ffcv: give the folder of the shard set that it was made from, and the "
    "file as --data.beton with --data.reader beton",
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
        return _describe_folder(path, path)
    if path.suffix == ".json":
        return f"a file of a shard set; give its folder, {path.parent}"
    if path.name.endswith(_TAR_SUFFIXES):
        return f"one tar; give the folder of its shard set, or, if it has none, {_ADOPT}"
    return _describe_file(path, path)


def describe_input(path: Path, source: str) -> str | None:
    """A sentence on what `source` was given; None also if `source` itself reads such input."""
    found: str | None = None
    with contextlib.suppress(OSError):  # of what is not there, or cannot be looked into
        found = describe_path(path) if path.exists() else None
    if found is not None and path.is_file():
        found = f"it seems to be {found}"
    reads_tars = source in ("webdataset", "imagenet")
    is_own = found is None or f" shard {source} " in found or (reads_tars and _ADOPT in found)
    return None if is_own else found


def describe_unfinished(folder: Path) -> str | None:
    """A sentence on a folder whose conversion is not finished, None of any other."""
    if not (folder / WORK_FOLDER).is_dir():
        return None
    return (
        f"{folder} is a conversion that is not finished: run the same 'python -m data_prep shard' "
        "command again, or, if its tasks are done: "
        + as_command("python", "-m", "data_prep", "merge", folder)
    )


def _describe_file(file: Path, given: Path) -> str | None:
    """What a file is; `given` is the path that a command would read."""
    if file.suffix in _TABLES:
        what, source = _TABLES[file.suffix]
        return f"{what}; {_make_of(source, file if source == 'table' else given)}"
    return _OTHERS.get(file.suffix)


def _describe_folder(path: Path, given: Path) -> str | None:
    """What a folder is, `given` or one inside it."""
    names = _names_in(path)
    for name in names:
        if (path / name / "_info.json").is_file():
            return f"it holds the shard set {name}: give {path / name}"
    for name in names:
        if name.endswith(".json"):
            with contextlib.suppress(OSError, ValueError):
                if (found := describe_manifest(read_json((path / name).read_bytes()))) is not None:
                    return f"{name} in it is {found}"
    for beginning, source in _RAW_NAMES.items():
        if any(name.startswith(beginning) for name in names):
            return f"it seems to be raw data: {_make_of(source, given)}"
    if "train" in names and (train := path / "train").is_dir():
        entries = sorted(train.iterdir())
        if any(entry.is_dir() for entry in entries):
            what = "it seems to be a folder of images by split and class"
            return f"{what}: {_make_of('folder', given)}"
        inside = [entry.name for entry in entries]
        if any(map(_CLASS_OF_IMAGENET.fullmatch, inside)):
            return f"it seems to be raw data: {_make_of('imagenet', given)}"
        if (found := _describe_folder(train, given)) is not None:
            return f"of its folder train: {found}"
    for name in names:
        if name.endswith(_TAR_SUFFIXES):
            return f"it holds tars ({name}), without an index; {_ADOPT}"
        if (found := _describe_file(path / name, given)) is not None:
            return f"{name} in it is {found}"
    folders = [path / name for name in names if (path / name).is_dir()]
    for folder in folders:
        if folder.name == "data" and (found := _describe_folder(folder, given)):
            return f"of its folder data: {found}"
    if any(is_image(name, bytes) for folder in folders for name in _names_in(folder)[:_FEW]):
        return f"it seems to hold folders of images by class: {_make_of('folder', given)}"
    return None


def _names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def _make_of(source: str, path: Path) -> str:
    words = ("python", "-m", "data_prep", "shard", source, "--input", path, "--output", "SHARDS")
    return f"make a shard set of it with: {as_command(*words)}"
