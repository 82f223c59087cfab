"""What several files of whole-process tests need."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """For runs whose checkpoints have up to 0.5 GB: none is left behind."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All that is in this folder is slow."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
