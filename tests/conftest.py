"""What tests of several packages start from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.ffcv_process import FfcvProcess, require_ffcv


@pytest.fixture(scope="session")
def ffcv(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FfcvProcess]:
    """Runs what needs ffcv."""
    require_ffcv()
    with contextlib.closing(FfcvProcess(tmp_path_factory.mktemp("ffcv"))) as process:
        yield process
