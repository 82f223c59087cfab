"""The sources `cifar10` and `cifar100`: the official Python archives, packed or unpacked.

https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import pickle
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.shard_set.keys import make_keys
from data_prep.shard_set.pixels import Pixels
from data_prep.sources.apart import each_apart
from data_prep.sources.samples import Sample, SampleTable
from data_prep.sources.source import Source, SourceError, read_files

_log = logging.getLogger(__name__)

_IMAGE_SIZE = 32
_ROW_BYTES = 3 * _IMAGE_SIZE * _IMAGE_SIZE

_Batch = tuple[npt.NDArray[np.uint8], list[int], list[str]]
"""Images as rows, labels, and names of files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """What is where in an archive; keys of its pickles are bytes, as Python 2 wrote them."""

    name: str
    archive: str
    md5: str
    folder: str
    files: Mapping[str, tuple[str, ...]]
    """Names of the batches, by split."""
    meta: str
    class_names: bytes
    labels: bytes


_CIFAR10 = _Layout(
    name="cifar10",
    archive="cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    folder="cifar-10-batches-py",
    files={
        "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
        "val": ("test_batch",),
    },
    meta="batches.meta",
    class_names=b"label_names",
    labels=b"labels",
)
_CIFAR100 = _Layout(
    name="cifar100",
    archive="cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
    files={"train": ("train",), "val": ("test",)},
    meta="meta",
    class_names=b"fine_label_names",
    labels=b"fine_labels",
)


@dataclass(frozen=True, slots=True)
class PixelReader:
    """Holds all images, by split: uint8 [n, 3·32·32], channel by channel."""

    images: Mapping[str, npt.NDArray[np.uint8]]

    def read(self, sample: Sample) -> Pixels:
        split, row = sample.locator.split("/")
        planes = self.images[split][int(row)].reshape(3, _IMAGE_SIZE, _IMAGE_SIZE)
        return np.ascontiguousarray(planes.transpose(1, 2, 0))

    def stamp(self, sample: Sample) -> int:
        """Of the pixels, whatever file they are in."""
        split, row = sample.locator.split("/")
        return zlib.crc32(self.images[split][int(row)])


def _open(layout: _Layout, path: Path) -> Source:
    """The source from its archive or the folder in it; raises `SourceError` if it is neither."""
    if not path.exists():
        raise SourceError(
            f"--input {path} does not exist; expected {layout.archive} or the folder "
            f"{layout.folder} unpacked from it"
        )
    if path.is_file():
        _warn_of_another(layout, path)
    elif (path / layout.folder).is_dir():
        path = path / layout.folder
    # A few bytes of a pickle can ask for any amount of memory.
    ((_, (class_names, batches)),) = each_apart(functools.partial(_read, layout), [path])
    images, splits = {}, {}
    for split, files in layout.files.items():
        parts = [batches[file] for file in files]
        images[split] = np.concatenate([part for part, _, _ in parts])
        labels = [label for _, some, _ in parts for label in some]
        keys = make_keys([name for _, _, names in parts for name in names])
        splits[split] = SampleTable(
            Sample(key, label, f"{split}/{row}")
            for row, (key, label) in enumerate(zip(keys, labels, strict=True))
        )
    return Source(
        name=layout.name,
        class_names=class_names,
        splits=splits,
        reader=PixelReader(images),
        default_encoding="rgb",
    )


open_cifar10 = functools.partial(_open, _CIFAR10)
open_cifar100 = functools.partial(_open, _CIFAR100)
"""With its 100 fine labels."""


def _warn_of_another(layout: _Layout, path: Path) -> None:
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 != layout.md5:
        _log.warning(
            "warning: %s has md5 %s, the official %s has %s: it is another version",
            *(path, md5, layout.archive, layout.md5),
        )


def _read(layout: _Layout, path: Path) -> tuple[tuple[str, ...], dict[str, _Batch]]:
    """The names of the classes, and each batch by its file."""
    files = {name for names in layout.files.values() for name in names}
    contents = read_files(path, {layout.meta, *files})
    meta = _unpickle(layout.meta, contents.pop(layout.meta))
    try:
        class_names = tuple(name.decode() for name in meta[layout.class_names])
    except MemoryError:
        raise
    except Exception:  # a pickle may hold anything
        raise SourceError(f"{layout.meta} of {path} holds no list of class names") from None
    count = len(class_names)
    return class_names, {name: _parse(layout, name, contents[name], count) for name in files}


def _parse(layout: _Layout, file: str, content: bytes, num_classes: int) -> _Batch:
    """Images as rows, labels and file names of a batch."""
    fields = _unpickle(file, content)
    try:
        images = np.asarray(fields[b"data"])
        labels = [int(label) for label in fields[layout.labels]]
        names = [name.decode() for name in fields[b"filenames"]]
    except MemoryError:
        raise
    except Exception as error:  # a pickle may hold anything
        raise SourceError(f"{file} is not a batch of {layout.name} ({error!r})") from None
    is_right = images.dtype == np.uint8 and images.shape == (len(labels), _ROW_BYTES)
    is_labelled = 0 < len(labels) == len(names) and set(labels) <= set(range(num_classes))
    if not (is_right and is_labelled):
        raise SourceError(
            f"{file} has images {images.dtype}{list(images.shape)}, {len(names)} names and "
            f"{len(labels)} labels up to {max(labels, default=0)}; expected as many of each, at "
            f"least one, as uint8[n, {_ROW_BYTES}], with labels from 0 to {num_classes - 1}"
        )
    return images, labels, names


def _unpickle(name: str, content: bytes) -> Any:
    try:
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise SourceError(f"{name} cannot be read: {error}") from None


def _make_array(*_: object) -> npt.NDArray[np.uint8]:
    return np.empty(0, np.uint8)


class _Unpickler(pickle.Unpickler):
    """Builds arrays and plain values only: a pickle can otherwise run any program."""

    def find_class(self, module: str, name: str) -> Any:
        # NumPy 1 and 2 call the module of `_reconstruct` differently. It makes an array that its
        # state fills, of this class; of a shape without a state it would hold whatever was there.
        allowed = {
            ("numpy", "ndarray"): None,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): _make_array,
            ("numpy._core.multiarray", "_reconstruct"): _make_array,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no CIFAR batch needs; do not trust this file"
            )
        return allowed[module, name]
