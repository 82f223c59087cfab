"""What tests of several packages start from."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.ffcv_process import FfcvProcess, require_ffcv


@pytest.fixture(scope="session")
def ffcv(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FfcvProcess]:
    """Runs what needs ffcv."""
    require_ffcv()
    with contextlib.closing(FfcvProcess(tmp_path_factory.mktemp("ffcv"))) as process:
        yield process


def pytest_configure() -> None:
    """A busy machine is no failure: hypothesis measures no times, and draws the same each time.

    Else a run could fail, by an example of its own, for what it has not changed. `tests.fuzz` looks
    for more.
    """
    slowness = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile(
        "any machine", deadline=None, suppress_health_check=slowness, derandomize=True
    )
    hypothesis.settings.load_profile("any machine")


SLOW_FOLDERS = {"integration", "benchmarks"}
"""All that is in these is slow."""

SLOW_TO_MAKE = {"ffcv", "cifar10_folder"}
"""Fixtures that take seconds: a process that imports ffcv, an archive of 60,000 images."""


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folders = item.path.relative_to(Path(__file__).parent).parts
        fixtures = item.fixturenames if isinstance(item, pytest.Function) else []
        if SLOW_FOLDERS & {*folders} or SLOW_TO_MAKE & {*fixtures}:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def signals_are_heeded() -> None:
    """Under nohup, or in the background of a script, what the tests start would ignore them."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def handlers_are_restored() -> Iterator[None]:
    """Of signals: a command that a test calls in this process sets them for the rest of it."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
