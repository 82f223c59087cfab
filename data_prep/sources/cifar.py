"""The sources `cifar10` and `cifar100`: the official Python archives, packed or unpacked.

https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.shard_set.keys import make_keys
from data_prep.shard_set.pixels import Pixels
from data_prep.sources.samples import Sample, SampleTable
from data_prep.sources.source import Source, SourceError

logger = logging.getLogger(__name__)

_IMAGE_SIZE = 32
_ROW_BYTES = 3 * _IMAGE_SIZE * _IMAGE_SIZE


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """What is where in an archive; file entries have bytes for names, being Python 2's."""

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


def open_cifar10(path: Path) -> Source:
    """CIFAR-10 from its archive or the folder in it; raises `SourceError` if `path` is neither."""
    return _open(_CIFAR10, path)


def open_cifar100(path: Path) -> Source:
    """CIFAR-100 with its 100 fine labels, else as `open_cifar10`."""
    return _open(_CIFAR100, path)


@dataclass(frozen=True, slots=True)
class PixelReader:
    """Holds all images, by split: uint8 [n, 3·32·32], channel by channel."""

    images: Mapping[str, npt.NDArray[np.uint8]]

    def read(self, sample: Sample) -> Pixels:
        split, row = sample.locator.split("/")
        planes = self.images[split][int(row)].reshape(3, _IMAGE_SIZE, _IMAGE_SIZE)
        return np.ascontiguousarray(planes.transpose(1, 2, 0))

    def stamp(self, sample: Sample) -> int:
        """Of the pixels: they were read with all others, whatever file they are in."""
        split, row = sample.locator.split("/")
        return zlib.crc32(self.images[split][int(row)])


@dataclass(frozen=True, slots=True)
class _Batch:
    images: npt.NDArray[np.uint8]
    labels: list[int]
    names: list[str]


def _open(layout: _Layout, path: Path) -> Source:
    contents = _read_files(layout, path)
    meta = _unpickle(layout.meta, contents[layout.meta])
    try:
        class_names = tuple(name.decode() for name in meta[layout.class_names])
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError):
        raise SourceError(f"{layout.meta} of {path} holds no list of class names") from None
    images, splits = {}, {}
    for split, files in layout.files.items():
        batches = [_parse(layout, file, contents[file], len(class_names)) for file in files]
        images[split] = np.concatenate([batch.images for batch in batches])
        labels = [label for batch in batches for label in batch.labels]
        keys = make_keys([name for batch in batches for name in batch.names])
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


def _read_files(layout: _Layout, path: Path) -> dict[str, bytes]:
    """Content of the files that are needed, by name."""
    wanted = {layout.meta, *(file for files in layout.files.values() for file in files)}
    if path.is_dir():
        folder = path / layout.folder if (path / layout.folder).is_dir() else path
        found = {name: folder / name for name in wanted if (folder / name).is_file()}
        contents = {name: file.read_bytes() for name, file in found.items()}
    elif path.is_file():
        contents = _read_archive(layout, path, wanted)
    else:
        raise SourceError(
            f"--input {path} does not exist; expected {layout.archive} or the folder "
            f"{layout.folder} unpacked from it"
        )
    if missing := sorted(wanted - set(contents)):
        raise SourceError(
            f"--input {path} has no {', '.join(missing)}; expected the files of "
            f"{layout.archive}: is it another data set, or not whole?"
        )
    return contents


def _read_archive(layout: _Layout, path: Path, wanted: set[str]) -> dict[str, bytes]:
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 != layout.md5:
        logger.warning(
            "warning: %s has md5 %s, the official %s has %s: it is damaged or another version; "
            "going on with it",
            path,
            md5,
            layout.archive,
            layout.md5,
        )
    contents = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                content = archive.extractfile(member)
                if name.parent.name == layout.folder and name.name in wanted and content:
                    contents[name.name] = content.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise SourceError(
            f"--input {path} cannot be unpacked ({error}); expected {layout.archive}: "
            "download it again"
        ) from None
    return contents


def _parse(layout: _Layout, file: str, content: bytes, num_classes: int) -> _Batch:
    fields = _unpickle(file, content)
    try:
        images = fields[b"data"]
        labels = [int(label) for label in fields[layout.labels]]
        names = [name.decode() for name in fields[b"filenames"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(f"{file} is not a batch of {layout.name} ({error!r})") from None
    shape = (len(labels), _ROW_BYTES)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape != shape:
        raise SourceError(f"{file} does not hold one uint8 image of {_ROW_BYTES} bytes a label")
    if not labels or len(names) != len(labels) or not set(labels) <= set(range(num_classes)):
        raise SourceError(
            f"{file} has {len(names)} names and {len(labels)} labels up to "
            f"{max(labels, default=0)}; expected as many of both, at least one, from 0 to "
            f"{num_classes - 1}"
        )
    return _Batch(images, labels, names)


def _unpickle(name: str, content: bytes) -> Any:
    try:
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises anything
        raise SourceError(f"{name} cannot be read: {error}") from None


class _Unpickler(pickle.Unpickler):
    """Builds arrays and plain values only: a pickle can otherwise run any program."""

    def find_class(self, module: str, name: str) -> Any:
        # NumPy 1 and 2 call the module of `_reconstruct` differently; both mean this function.
        allowed = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
            ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no CIFAR batch needs; do not trust this file"
            )
        return allowed[module, name]
