"""A job of one rank under a supervisor, in which the rank is one of these functions.

    SCENARIO FOLDER

A rank leaves files in the folder, by which a test knows how far it is.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from data_prep.shard_set.files import write_atomically
from pipeline.config import timeouts
from pipeline.config.schema import DistributedConfig
from pipeline.ranks import supervisor
from pipeline.ranks.connect import store_of_attempt
from pipeline.ranks.failure import FirstFailure, exit_code_of
from pipeline.ranks.generations import Generations, store_of_generation
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.stop import StopSignals
from pipeline.run.ending import ExitCode
from tests.machine import DEADLINE_SECONDS, wait_until

PATIENCE = "patience"
"""The file in which a supervisor says how many seconds it gives a rank that a verdict names."""

CONFIG = DistributedConfig(warm_restarts=1, timeout_seconds=10.0)


def _meet(environment: LaunchEnvironment) -> None:
    """Be there, as the only rank of the first generation."""
    store = store_of_attempt(environment, DEADLINE_SECONDS)
    Generations(store, 1, CONFIG.warm_restarts).meet(0, DEADLINE_SECONDS)


def _name_itself(folder: Path, environment: LaunchEnvironment) -> int:
    """A verdict is on the rank, whose watchdog takes its time: it is killed only after that."""
    _meet(environment)
    store = store_of_generation(store_of_attempt(environment, DEADLINE_SECONDS), 0)
    FirstFailure("it hangs", ranks=(0,)).publish(store)
    wait_until((folder / PATIENCE).exists)
    (folder / "stacks").touch()
    return ExitCode.FAILED


def _wait_for_signal(folder: Path, environment: LaunchEnvironment) -> int:
    signals = StopSignals()
    _meet(environment)
    (folder / "there").touch()
    while signals.noted is None:
        time.sleep(0.05)
    return ExitCode.STOPPED


def _be_done(folder: Path, _: LaunchEnvironment) -> int:
    time.sleep(DEADLINE_SECONDS)
    (folder / "done").touch()
    return ExitCode.DONE


SCENARIOS: dict[str, Callable[[Path, LaunchEnvironment], int]] = {
    "named": _name_itself,
    "waiting": _wait_for_signal,
    "signalled": _be_done,
}


class Unhurried:
    """What a supervisor waits with: as long as it takes, where it is about to kill a rank.

    Set in place of the module `select`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def select(self, ready: list[int], _: list[int], __: list[int], seconds: float) -> Any:
        if seconds != timeouts.WATCH_SECONDS:
            write_atomically(self._folder / PATIENCE, str(seconds).encode())
            seconds = DEADLINE_SECONDS
        return select.select(ready, [], [], seconds)


def main(words: Sequence[str]) -> int:
    scenario, folder = words[0], Path(words[1])
    timeouts.ANSWER_OF_STORE_SECONDS = 1.0 if scenario == "waiting" else DEADLINE_SECONDS
    signals = StopSignals()
    if scenario == "signalled":  # while the supervisor still imports what its rank needs
        os.kill(os.getpid(), signal.SIGTERM)
    rank = partial(SCENARIOS[scenario], folder)
    with mock.patch.object(supervisor, "select", Unhurried(folder)):
        return exit_code_of(
            partial(supervisor.supervise, LaunchEnvironment.read(), CONFIG, rank, signals)
        )
