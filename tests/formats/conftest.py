"""Each test of a format holds for every version of the fixtures."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.formats.fixtures import LARGE, VERSIONS, copy_images, shard

assert VERSIONS, "without fixtures every test would be skipped"


@pytest.fixture(scope="session", params=VERSIONS, ids=lambda path: path.name)
def version(request: pytest.FixtureRequest) -> Path:
    """A folder of fixtures."""
    path: Path = request.param
    return path


@pytest.fixture(scope="session")
def large(version: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shard set `LARGE`."""
    folder = tmp_path_factory.mktemp("large")
    shard(copy_images(version, folder / "images"), folder / "shards", LARGE)
    return folder / "shards"


@pytest.fixture
def scratch() -> Iterator[Path]:
    """For checkpoints of half a gigabyte: none is left behind."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)
