"""A job of one rank under a supervisor, in which the rank is one of these functions.

    SCENARIO FOLDER

A rank leaves files in the folder, by which a test knows how far it is.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pipeline.config import timeouts
from pipeline.config.schema import DistributedConfig
from pipeline.ranks.connect import store_of_attempt
from pipeline.ranks.failure import FirstFailure, exit_code_of
from pipeline.ranks.generations import Generations, store_of_generation
from pipeline.ranks.launcher import LaunchEnvironment
from pipeline.ranks.stop import StopSignals
from pipeline.ranks.supervisor import supervise
from pipeline.run.ending import ExitCode

_SECONDS = 30.0
CONFIG = DistributedConfig(warm_restarts=1, timeout_seconds=10.0)


def _meet(environment: LaunchEnvironment) -> None:
    """Be there, as the only rank of the first generation."""
    store = store_of_attempt(environment, _SECONDS)
    Generations(store, 1, CONFIG.warm_restarts).meet(0, _SECONDS)


def _name_itself(folder: Path, environment: LaunchEnvironment) -> int:
    """A verdict is on the rank, whose watchdog takes its time."""
    _meet(environment)
    store = store_of_generation(store_of_attempt(environment, _SECONDS), 0)
    FirstFailure("it hangs", ranks=(0,)).publish(store)
    time.sleep(timeouts.heartbeat_seconds(CONFIG.timeout_seconds))
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
    time.sleep(_SECONDS)
    (folder / "done").touch()
    return ExitCode.DONE


SCENARIOS: dict[str, Callable[[Path, LaunchEnvironment], int]] = {
    "named": _name_itself,
    "waiting": _wait_for_signal,
    "signalled": _be_done,
}


def main(words: Sequence[str]) -> int:
    scenario, folder = words
    timeouts.ANSWER_OF_STORE_SECONDS = 1.0
    signals = StopSignals()
    if scenario == "signalled":  # while the supervisor still imports what its rank needs
        os.kill(os.getpid(), signal.SIGTERM)
    rank = partial(SCENARIOS[scenario], Path(folder))
    return exit_code_of(partial(supervise, LaunchEnvironment.read(), CONFIG, rank, signals))
