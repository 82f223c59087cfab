"""torchrun as `launch` starts it on this machine, and its output."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from launch.meeting import Meeting
from pipeline.config.timeouts import SHUTDOWN_SECONDS, SHUTDOWN_VARIABLE
from pipeline.run.ending import (
    LAUNCHER_VARIABLE,
    ExitCode,
    StopSource,
    handled_signals,
    signals_to_handle,
)
from pipeline.run.lock import LOG_VARIABLE


def torchrun_command(
    num_ranks: int, max_restarts: int, module: str, arguments: Sequence[str], *meeting: str
) -> list[str]:
    """The options of a `meeting` come first; without any the ranks meet on this machine alone."""
    return [
        *(sys.executable, "-m", "pipeline.start_ranks"),
        *(meeting or ("--standalone",)),
        *(f"--nproc_per_node={num_ranks}", f"--max-restarts={max_restarts}"),
        f"--signals-to-handle={signals_to_handle(handled_signals())}",
        *("-m", module, *arguments),
    ]


def local_environment(*, is_alone: bool = True) -> dict[str, str]:
    """The environment of a `torchrun_command`; what the user has set stays.

    `is_alone` says that all ranks are on this machine.
    """
    return {
        # Else gloo asks for the address of the host's name.
        **({"GLOO_SOCKET_IFNAME": "lo"} if is_alone else {}),
        LAUNCHER_VARIABLE: str(os.getpid()),
        "OMP_NUM_THREADS": "1",  # as torchrun has it; ranks set their own number of threads
        SHUTDOWN_VARIABLE: str(SHUTDOWN_SECONDS),
        **os.environ,
    }


def run_torchrun(
    command: Callable[[], list[str]], log: Path, events: Path, meeting: Meeting | None = None
) -> tuple[int, StopSource | None]:
    """Its exit code, and the last signal that came; its output is shown, and written to `log`.

    It is started when node 0 of a `meeting` answers. Signals are passed on: in a process group of
    its own torchrun gets none from the terminal. Until there are new `events` ranks only start, and
    Ctrl-C would end each with a traceback.
    """
    before = _change_of(events)
    asked: StopSource | None = None
    environment = local_environment(is_alone=meeting is None) | {LOG_VARIABLE: str(log.absolute())}
    started: list[subprocess.Popen[bytes]] = []

    def forward_signal(number: int, _: FrameType | None) -> None:
        nonlocal asked
        asked = StopSource[signal.Signals(number).name]
        is_starting = number == signal.SIGINT and _change_of(events) == before
        for child in started:
            child.send_signal(signal.SIGTERM if is_starting else number)

    for number in handled_signals():
        signal.signal(number, forward_signal)
    if meeting is not None and not meeting.wait(lambda: asked is not None):
        return ExitCode.FAILED, asked
    with (
        log.open("wb", buffering=0) as file,
        subprocess.Popen(
            command(),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
        ) as child,
    ):
        started.append(child)
        if asked:  # perhaps before
            child.terminate()
        assert child.stdout is not None
        _copy(child.stdout, file)
    return child.returncode, asked


def _change_of(events: Path) -> int | None:
    try:
        return events.stat().st_mtime_ns
    except OSError:
        return None


def _copy(output: IO[bytes], file: IO[bytes]) -> None:
    """A full disk costs lines of the log, never the run."""
    last_error = b""
    for content in output:
        if content == last_error:  # the rank that failed has said it, and so has rank 0
            continue
        last_error = content if content.startswith(b"error: ") else b""
        sys.stdout.write(content.decode(errors="backslashreplace"))
        sys.stdout.flush()
        with contextlib.suppress(OSError):
            file.write(content)
