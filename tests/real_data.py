"""Real images, where they lie beside the repository."""

from __future__ import annotations

import functools
import tarfile
import tempfile
from pathlib import Path

import pytest

_ARCHIVE = Path(__file__).resolve().parents[2] / "shared/data/imagenet-sample.tar"


def imagenet_jpegs() -> list[Path]:
    """A thousand JPEGs of ImageNet, one a class; skips the test where they are not."""
    if not _ARCHIVE.exists():
        pytest.skip(f"needs {_ARCHIVE}")
    return _unpacked()


@functools.cache
def _unpacked() -> list[Path]:
    folder = tempfile.TemporaryDirectory(prefix="imagenet-")
    _KEPT.append(folder)
    with tarfile.open(_ARCHIVE) as archive:
        archive.extractall(folder.name, filter="data")
    return sorted(Path(folder.name).rglob("*.JPEG"))


_KEPT: list[tempfile.TemporaryDirectory[str]] = []
"""Deleted when the interpreter ends."""
