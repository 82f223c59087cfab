"""What tests of several packages start from."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import pytest

from tests.ffcv_process import FfcvProcess, require_ffcv


@pytest.fixture(scope="session")
def ffcv(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FfcvProcess]:
    """Runs what needs ffcv."""
    require_ffcv()
    with contextlib.closing(FfcvProcess(tmp_path_factory.mktemp("ffcv"))) as process:
        yield process


@pytest.fixture(scope="session", autouse=True)
def signals_are_heeded() -> None:
    """Under nohup, or in the background of a script, what the tests start would ignore them."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
