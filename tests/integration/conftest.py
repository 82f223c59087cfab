"""What several files of whole-process tests need."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.training import finish, make_shards


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """For runs whose checkpoints have up to 0.5 GB: none is left behind."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("training") / "shards")


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs."""
    run = tmp_path_factory.mktemp("trained") / "run"
    finish(2, shards, run, "--epochs", 2)
    return run
