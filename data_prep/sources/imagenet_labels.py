"""Labels of ImageNet's validation images, which lie in one folder without any: who says what.

The devkit counts classes from 1, in an order of its own, and its `meta.mat` tells which WNID a
number is; a label here is the place of the WNID among all, sorted, from 0.
"""

from __future__ import annotations

import csv
import gzip
import io
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data_prep.sources.source import SourceError, name_some

DEVKIT_NAME = "ILSVRC2012_devkit_t12"
GROUND_TRUTH_NAME = "ILSVRC2012_validation_ground_truth.txt"
SOLUTION_NAME = "LOC_val_solution.csv"
_META_NAME = "meta.mat"
_MAX_SHOWN = 20
"""Characters of a wrong line that an error repeats."""


@dataclass(frozen=True, slots=True)
class Devkit:
    """What the development kit says of the classes and of the validation images."""

    wnids: Mapping[int, str]
    """By the devkit's number of the class, from 1."""
    num_train_images: Mapping[str, int]
    """By WNID."""
    ground_truth: Sequence[int]
    """Numbers of the classes of the validation images, in the order of their names."""


def read_devkit(root: Path) -> Devkit | None:
    """The devkit in `root`, packed or unpacked, or None.

    Raises `SourceError` if it is damaged, or contradicts itself or a ground-truth file beside it.
    """
    path = root / f"{DEVKIT_NAME}.tar.gz"
    files = _read_packed(path) if path.exists() else _read_unpacked(root / DEVKIT_NAME)
    loose = root / GROUND_TRUTH_NAME
    if files is None:
        return None
    if missing := sorted({_META_NAME, GROUND_TRUTH_NAME} - set(files)):
        raise SourceError(f"the devkit in {root} has no {', '.join(missing)}: download it again")
    wnids, counts = _parse_meta(files[_META_NAME])
    ground_truth = _parse_ground_truth(files[GROUND_TRUTH_NAME], len(wnids))
    if loose.exists() and _parse_ground_truth(loose.read_bytes(), len(wnids)) != ground_truth:
        raise SourceError(
            f"{loose} and the devkit's {GROUND_TRUTH_NAME} differ: remove the one that is wrong"
        )
    return Devkit(wnids, counts, ground_truth)


def read_truth(root: Path, devkit: Devkit | None) -> Mapping[str, str] | None:
    """The WNID of each validation image, by its name without suffix, or None if nothing tells it.

    Raises `SourceError` if the devkit and Kaggle's table contradict each other.
    """
    solution = _read_solution(root)
    if devkit is None:
        return solution
    truth = {
        f"ILSVRC2012_val_{row:08d}": devkit.wnids[number]
        for row, number in enumerate(devkit.ground_truth, 1)
    }
    if solution is not None and solution != truth:
        wrong = [name for name in {*truth, *solution} if truth.get(name) != solution.get(name)]
        raise SourceError(
            f"{root / SOLUTION_NAME} and the devkit differ ({name_some(wrong)}): one of them is "
            "wrong"
        )
    return truth


def _read_solution(root: Path) -> Mapping[str, str] | None:
    """WNIDs by name of the validation image, from Kaggle's table, or None if it is not there."""
    path = root / SOLUTION_NAME
    if not path.exists():
        return None
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = [
                (row["ImageId"], row["PredictionString"].split()[0]) for row in csv.DictReader(file)
            ]
    except (csv.Error, KeyError, IndexError, AttributeError) as error:
        raise SourceError(
            f"{path} is not Kaggle's table with ImageId and PredictionString ({error!r}): "
            "download it again"
        ) from None
    solution = dict(rows)
    if wrong := {name for name, wnid in rows if solution[name] != wnid}:
        raise SourceError(
            f"{path} has several rows with different classes for one image ({name_some(wrong)}): "
            "download it again"
        )
    return solution


def _read_packed(path: Path) -> Mapping[str, bytes]:
    wanted = (_META_NAME, GROUND_TRUTH_NAME)
    files = {}
    try:
        content = gzip.decompress(path.read_bytes())  # to its end, where the checksum is
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if name in wanted and member.isreg():
                    files[name] = content[member.offset_data :][: member.size]
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise SourceError(f"{path} cannot be unpacked ({error}): download it again") from None
    return files


def _read_unpacked(folder: Path) -> Mapping[str, bytes] | None:
    if not folder.is_dir():
        return None
    paths = [folder / "data" / name for name in (_META_NAME, GROUND_TRUTH_NAME)]
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def _parse_meta(content: bytes) -> tuple[Mapping[int, str], Mapping[str, int]]:
    """WNIDs by number, and numbers of training images by WNID, of the classes without children."""
    synsets = _load_synsets(content)
    try:
        rows = [
            (int(row["ILSVRC2012_ID"]), str(row["WNID"]), int(row["num_train_images"]))
            for row in np.atleast_1d(synsets)
            if not int(row["num_children"])
        ]
    except (TypeError, ValueError, IndexError, OverflowError) as error:
        raise SourceError(
            f"{_META_NAME} of the devkit lists no synsets ({error}): download it again"
        ) from None
    wnids = {number: wnid for number, wnid, _ in rows}
    if sorted(number for number, _, _ in rows) != list(range(1, len(rows) + 1)) or len(
        set(wnids.values())
    ) != len(rows):
        raise SourceError(
            f"{_META_NAME} of the devkit numbers its {len(rows)} classes in another way than once "
            f"each from 1 to {len(rows)}: download it again"
        )
    return wnids, {wnid: count for _, wnid, count in rows}


def _load_synsets(content: bytes) -> Any:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise SourceError(
            f"the devkit's {_META_NAME} is a MATLAB file, and scipy, which reads those, is not "
            "installed: pip install 'alexnet-2012[imagenet]'"
        ) from None
    try:
        return loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
    except Exception as error:  # a damaged file raises anything
        raise SourceError(
            f"{_META_NAME} of the devkit cannot be read ({error}): download it again"
        ) from None


def _parse_ground_truth(content: bytes, num_classes: int) -> list[int]:
    lines = [line.strip() for line in content.rstrip().splitlines()]
    numbers = {b"%d" % number: number for number in range(1, num_classes + 1)}
    wrong = [
        f"{line[:_MAX_SHOWN].decode('ascii', 'replace')!r} in line {row}"
        for row, line in enumerate(lines, 1)
        if line not in numbers
    ]
    if wrong:
        raise SourceError(
            f"{GROUND_TRUTH_NAME} holds {name_some(wrong)}; expected numbers from 1 to "
            f"{num_classes}: download the devkit again"
        )
    return [numbers[line] for line in lines]
