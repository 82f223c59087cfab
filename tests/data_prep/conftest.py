"""Shard sets that several tests start from."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import pytest

from data_prep.shard_set import compiled
from tests.data_prep.raw_data import REPOSITORY, hash_tree, run_cli

CIFAR10_IMAGES = REPOSITORY.parent / "shared/data/cifar10-images.tar.xz"


@pytest.fixture(params=["compiled", "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to the same pixels."""
    if request.param == "plain":
        monkeypatch.setattr(compiled, "_library", None)
    elif not compiled.is_compiled():
        pytest.skip("data_prep.shard_set._pixels was not built")
    return str(request.param)


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoding rgb; 60 + 25 samples in 3 + 2 shards."""
    shards = tmp_path_factory.mktemp("synthetic") / "shards"
    result = run_cli("shard", "synthetic", "--output", shards, *SYNTHETIC_OPTIONS)
    assert result.returncode == 0, result.stderr
    return shards


SYNTHETIC_OPTIONS = ("--num-train", 60, "--num-val", 25, "--samples-per-shard", 20)


SLOW_OPTIONS = ("--num-train", 1900, "--num-val", 100, "--samples-per-shard", 100)
"""Enough work to be caught at it, twenty shards."""


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of `synthetic` with `SLOW_OPTIONS`."""
    return shard_synthetic(tmp_path_factory.mktemp("undisturbed") / "shards", *SLOW_OPTIONS)


def shard_synthetic(output: Path, *options: object) -> dict[str, str]:
    """Make a shard set; returns the hashes of its files."""
    result = run_cli("shard", "synthetic", "--output", output, *options)
    assert result.returncode == 0, result.stderr
    return hash_tree(output)


@pytest.fixture(scope="session")
def cifar10_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10 as JPEGs: `train/CLASS/*` with 10 images and `test/CLASS/*` with 5."""
    if not CIFAR10_IMAGES.exists():
        pytest.skip(f"{CIFAR10_IMAGES} is not there")
    root = tmp_path_factory.mktemp("cifar10")
    wanted = re.compile(r"train/\w+/000\d\.jpg|test/\w+/000[0-4]\.jpg")
    with tarfile.open(CIFAR10_IMAGES) as archive:
        archive.extractall(root, [m for m in archive if wanted.fullmatch(m.name)], filter="data")
    return root


@pytest.fixture(scope="session")
def cifar10(cifar10_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoding jpeg; 100 + 50 samples of CIFAR-10 in 3 + 2 shards."""
    shards = tmp_path_factory.mktemp("cifar10") / "shards"
    result = run_cli(
        "shard", "folder", "--input", cifar10_folder, "--output", shards, "--samples-per-shard", 40
    )
    assert result.returncode == 0, result.stderr
    return shards
