"""`python -m launch local RECIPE …`: torchrun on this machine, one rank a device.

Started on each of several machines, it is a job on all of them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Annotated

from data_prep.shard_set.fields import Limit, at_least, wrong
from data_prep.shard_set.options import Named, Rest
from data_prep.shard_set.streams import say
from launch.meeting import Meeting, has_lost_nodes
from launch.options import refuse_misplaced
from launch.outcome import is_new_run, outcome_of
from pipeline.config.model import ranks_per_replica
from pipeline.config.order import Surroundings
from pipeline.config.timeouts import SHUTDOWN_SECONDS, SHUTDOWN_VARIABLE
from pipeline.run.console import Console, counted
from pipeline.run.ending import (
    LAUNCHER_VARIABLE,
    ExitCode,
    StopSource,
    exit_code_of,
    handled_signals,
    signals_to_handle,
)
from pipeline.run.event_log import end_of, of_training, read_events, write_submission
from pipeline.run.events import EndEvent, RunEvent, SubmittedTo
from pipeline.run.lock import LOG_VARIABLE
from pipeline.run.measured import check_run
from pipeline.train.command import Command, asks_for_help, help_text, parse_command


def _is_place(text: str) -> bool:
    match = re.fullmatch(r"[^\s:]+:([1-9][0-9]{0,4})", text)
    return match is not None and int(match[1]) < 1 << 16


_PLACE = Limit("HOST:PORT", _is_place)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Train a recipe under torchrun on this machine. Options come before it."""

    nproc: Annotated[int | None, at_least(1)] = None
    """Number of ranks; if not given, one a GPU, on CPUs one a column."""
    nodes: Annotated[int, at_least(1)] = 1
    """Number of machines on which this command is started."""
    node_rank: Annotated[int, at_least(0)] = 0
    """Which one of them this is."""
    rendezvous: Annotated[str | None, Named("--rendezvous", "HOST:PORT"), _PLACE] = None
    """Where all of them reach the machine of rank 0, and a free port there."""
    max_restarts: Annotated[int, at_least(0)] = 0
    """How often the ranks are started again when one fails."""
    command: Annotated[tuple[str, ...], Rest("RECIPE …")]
    """The recipe, then --data.shards SHARDS --run-dir RUN and other options of training;
    'python -m pipeline.train --help' lists the recipes and explains the options."""

    def meeting(self) -> Meeting | None:
        """None on one machine; raises `ValueError` if the options contradict each other."""
        if self.node_rank >= self.nodes:
            raise wrong("--node-rank", str(self.node_rank), f"0 to {self.nodes - 1}, below --nodes")
        if (self.nodes > 1) != (self.rendezvous is not None):
            raise ValueError(
                f"--nodes is {self.nodes}, and --rendezvous is "
                f"{self.rendezvous or 'missing'}: give both for several machines, or neither"
            )
        if self.rendezvous is None:
            return None
        return Meeting(place=self.rendezvous, num_nodes=self.nodes, node_rank=self.node_rank)


def run(options: Options) -> int:
    """Returns 0 if all that was asked for is done, 75 if it was stopped before, and 1 if it failed.

    Raises `ValueError` if the command is not one of `pipeline.train`.
    """
    console = Console(sys.stdout)
    if asks_for_help(options.command):
        say(*help_text(options.command).splitlines())
        return 0
    refuse_misplaced("python -m launch local", (Options,), options.command)
    command = parse_command(options.command)
    meeting = options.meeting()
    num_ranks = options.nproc
    if num_ranks is None:
        num_ranks = choose_num_ranks(command, num_gpus())
    around = Surroundings(shutdown=float(local_environment()[SHUTDOWN_VARIABLE]))
    check_run(command.config, command.run, around)  # the run itself warns
    begin = time.time()
    node = "" if meeting is None else f"-node{options.node_rank}"  # ids are alike in containers
    log = command.run.logs / f"local-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}{node}.log"
    with command.run.being_made():
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
    events = command.run.events
    before = end_of(events)
    if options.node_rank == 0:
        is_in_pod = "KUBERNETES_SERVICE_HOST" in os.environ
        to: SubmittedTo = "kubernetes" if is_in_pod else "local"
        write_submission(events, to, socket.gethostname() if is_in_pod else None, begin)
    console.line(f"{counted(num_ranks, 'rank')}; log: {log}")

    def torchrun() -> list[str]:
        there = () if meeting is None else meeting.torchrun_options()
        words = (num_ranks, options.max_restarts, "pipeline.train", options.command)
        return torchrun_command(*words, *there)

    code, asked = _run_torchrun(torchrun, log, events, meeting)
    rows = read_events(events, before)
    outcome = outcome_of(rows, code, asked, is_new=is_new_run(command.run))
    if meeting is not None and outcome == "failed" and has_lost_nodes(of_training(rows), code):
        outcome = "interrupted"
    own = {type(row) for row in rows}
    if own.isdisjoint({RunEvent, EndEvent}):
        os.utime(log, (0, 0))  # `launch logs` shows the newest
    if code and EndEvent not in own and (asked or RunEvent in own):
        console.line(f"{command.run.path}: {outcome}; what the ranks wrote is in {log}")
    return exit_code_of(outcome)


def choose_num_ranks(command: Command, num_gpus: int) -> int:
    """One a GPU; a CPU's cores are one device, which the columns of a network may share."""
    config = command.config
    if num_gpus and config.distributed.device != "cpu":
        return num_gpus
    return ranks_per_replica(config.model.columns)


def num_gpus() -> int:
    """Those that a job started here would see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        return next((place for place, name in enumerate(names) if name in ("", "-1")), len(names))
    if shutil.which("nvidia-smi") is None:
        return 0
    done = subprocess.run(
        ["nvidia-smi", "--list-gpus"],  # noqa: S607 - of the user's PATH
        capture_output=True,
        text=True,
        check=False,
    )
    return len(done.stdout.splitlines()) if done.returncode == 0 else 0


def torchrun_command(
    num_ranks: int, max_restarts: int, module: str, arguments: Sequence[str], *meeting: str
) -> list[str]:
    """The options of a `meeting` come first; without any the ranks meet on this machine alone.

    Then at a free port, by loopback: its name need not resolve.
    """
    return [
        *(sys.executable, "-m", "pipeline.start_ranks"),
        *(meeting or ("--standalone", "--local-addr=127.0.0.1")),
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
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # else restarted ranks do not find each other
    }


def _run_torchrun(
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
