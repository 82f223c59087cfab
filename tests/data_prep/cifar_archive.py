"""Small archives in the layout of the official ones, pickled as Python 2 did."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

IMAGES_PER_BATCH = 20
CIFAR10_NAMES = [b"airplane", b"automobile", b"bird", b"cat", b"deer"]
CIFAR100_NAMES = [b"apple", b"aquarium_fish", b"baby"]

Files = dict[str, bytes]


class _Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, text: bytes) -> None:
        self.write(pickle.BINSTRING + len(text).to_bytes(4, "little") + text)  # type: ignore[attr-defined]

    dispatch[bytes] = save_string  # type: ignore[assignment]


def dumps(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def make_batch(seed: int, labels_name: bytes, num_classes: int) -> dict[bytes, Any]:
    random = np.random.default_rng(seed)
    labels = [number % num_classes for number in range(IMAGES_PER_BATCH)]
    return {
        b"batch_label": b"testing",
        labels_name: labels,
        b"data": random.integers(0, 256, (IMAGES_PER_BATCH, 3072), np.uint8),
        b"filenames": [b"thing_s_%06d.png" % (1000 * seed + i) for i in range(IMAGES_PER_BATCH)],
    }


def cifar10_files() -> Files:
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    files = {
        name: dumps(make_batch(seed, b"labels", len(CIFAR10_NAMES)))
        for seed, name in enumerate(names)
    }
    return {**files, "batches.meta": dumps({b"label_names": CIFAR10_NAMES})}


def cifar100_files() -> Files:
    files = {}
    for seed, name in enumerate(("train", "test")):
        batch = make_batch(seed, b"fine_labels", len(CIFAR100_NAMES))
        files[name] = dumps({**batch, b"coarse_labels": [0] * IMAGES_PER_BATCH})
    meta = {b"fine_label_names": CIFAR100_NAMES, b"coarse_label_names": [b"all"]}
    return {**files, "meta": dumps(meta)}


def write_archive(path: Path, folder: str, files: Files) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_unpacked(root: Path, folder: str, files: Files) -> Path:
    (root / folder).mkdir(parents=True)
    for name, content in files.items():
        (root / folder / name).write_bytes(content)
    return root / folder
