"""Labels of ImageNet's validation images, which lie in one folder, from devkit or table.

The devkit counts classes from 1, in an order of its own, and its `meta.mat` says which WNID a
number is; a label here is the place of the WNID among all, sorted, from 0.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.shard_set.fields import name_some
from data_prep.sources.apart import each_apart
from data_prep.sources.samples import SampleTable
from data_prep.sources.source import SourceError, check_same, read_files

DEVKIT_NAME = "ILSVRC2012_devkit_t12"
SOLUTION_NAME = "LOC_val_solution.csv"
_META_NAME = "meta.mat"
_GROUND_TRUTH_NAME = "ILSVRC2012_validation_ground_truth.txt"
_MAX_SHOWN = 20
"""Characters of a wrong line that an error repeats."""


@dataclass(frozen=True, slots=True)
class Devkit:
    """What the development kit says of the images."""

    num_train_images: Mapping[str, int]
    """By WNID."""
    truth: Mapping[str, str]
    """The WNID of each validation image, by its name without suffix."""


def read_devkit(root: Path) -> Devkit | None:
    """The devkit in `root`, packed or unpacked, or None; raises `SourceError` if it is damaged."""
    path = root / f"{DEVKIT_NAME}.tar.gz"
    if not path.exists():
        path = root / DEVKIT_NAME / "data"
    if not path.exists():
        return None
    files = read_files(path, (_META_NAME, _GROUND_TRUTH_NAME))
    wnids, num_train_images = _parse_meta(path, files[_META_NAME])
    return Devkit(num_train_images, _parse_ground_truth(files[_GROUND_TRUTH_NAME], wnids))


def check_train(path: Path, wnids: tuple[str, ...], samples: SampleTable, devkit: Devkit) -> None:
    """Raise `SourceError` if the training images are not those that the devkit knows."""
    expected = devkit.num_train_images
    check_same(f"the classes of {path} and of the devkit", wnids, expected)
    wrong = [
        f"{wnid} has {count} of {expected[wnid]}"
        for wnid, count in zip(wnids, samples.count_labels(len(wnids)), strict=True)
        if count != expected[wnid]
    ]
    if wrong:
        raise SourceError(
            f"{path} has other numbers of images than the devkit says ({name_some(wrong)}): it is "
            "not whole, or holds copies; convert a subset as 'folder'"
        )


def read_truth(root: Path, devkit: Devkit | None) -> Mapping[str, str] | None:
    """The WNID of each validation image, by its name without suffix; None if no file says it.

    Raises `SourceError` if the devkit and Kaggle's table contradict each other.
    """
    path = root / SOLUTION_NAME
    truth = None if devkit is None else devkit.truth
    if not path.exists():
        return truth
    solution = _read_solution(path)
    if truth is not None and solution != truth:
        wrong = [name for name in {*truth, *solution} if truth.get(name) != solution.get(name)]
        raise SourceError(
            f"{path} and the devkit differ ({name_some(wrong)}): one of them is wrong"
        )
    return solution


def _read_solution(path: Path) -> Mapping[str, str]:
    """WNIDs by name of the validation image, from Kaggle's table."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            return {
                row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)
            }
    except (csv.Error, KeyError, IndexError, AttributeError) as error:
        raise SourceError(
            f"{path} is not Kaggle's table with ImageId and PredictionString ({error!r}): "
            "download it again"
        ) from None


def _parse_meta(path: Path, content: bytes) -> tuple[Mapping[int, str], Mapping[str, int]]:
    """WNIDs by number, and numbers of training images by WNID, of the classes without children.

    `path` is the devkit, of which this is the content of one file.
    """
    try:
        import scipy.io  # noqa: F401 - the process below has it then
    except ImportError:
        raise SourceError(
            f"the devkit's {_META_NAME} is a MATLAB file, and scipy, which reads those, is not "
            "installed: pip install 'alexnet-2012[imagenet]'"
        ) from None
    try:
        ((_, found),) = each_apart(lambda _path: _read_synsets(content), [path])
    except SourceError:
        raise
    except Exception as error:  # a damaged file raises anything
        raise SourceError(
            f"{_META_NAME} of the devkit cannot be read ({error}): download it again"
        ) from None
    return found


def _read_synsets(content: bytes) -> tuple[dict[int, str], dict[str, int]]:
    from scipy.io import loadmat

    synsets = np.atleast_1d(loadmat(io.BytesIO(content), squeeze_me=True)["synsets"])
    rows = [row for row in synsets if not int(row["num_children"])]
    wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
    return wnids, {str(row["WNID"]): int(row["num_train_images"]) for row in rows}


def _parse_ground_truth(content: bytes, wnids: Mapping[int, str]) -> Mapping[str, str]:
    lines = [line.strip() for line in content.rstrip().splitlines()]
    by_line = {b"%d" % number: wnid for number, wnid in wnids.items()}
    wrong = [
        f"{line[:_MAX_SHOWN].decode('ascii', 'replace')!r} in line {row}"
        for row, line in enumerate(lines, 1)
        if line not in by_line
    ]
    if wrong:
        raise SourceError(
            f"{_GROUND_TRUTH_NAME} holds {name_some(wrong)}; expected numbers from 1 to "
            f"{len(wnids)}: download the devkit again"
        )
    return {f"ILSVRC2012_val_{row:08d}": by_line[line] for row, line in enumerate(lines, 1)}
