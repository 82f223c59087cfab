"""`python -m launch local RECIPE …`: torchrun on this machine, one rank a device."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from launch.outcome import outcome_of
from pipeline.command import Command, parse_command
from pipeline.events import read_events

SHUTDOWN_SECONDS = 270
"""What ranks have to save in after a signal, before torchrun kills them."""

_EXIT_CODES = {"completed": 0, "interrupted": 75, "stopped": 75}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nproc", type=int, help="ranks; default: one a GPU, on CPUs one a column")
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        help="how often the ranks are started again when one fails; default: %(default)s",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="RECIPE …")


def run(options: argparse.Namespace) -> int:
    """Returns 0 if all that was asked for is done, 75 if it was stopped before, and 1 if it failed.

    Raises `ValueError` if the command is not one of `pipeline.train`.
    """
    command = parse_command(options.command)
    num_ranks = options.nproc
    if num_ranks is None:
        num_ranks = choose_num_ranks(command, num_gpus())
    for name, value, lowest in (
        ("--nproc", num_ranks, 1),
        ("--max-restarts", options.max_restarts, 0),
    ):
        if value < lowest:
            raise ValueError(f"{name} is {value}; expected at least {lowest}")
    begin = time.time()
    log = command.run.logs / f"local-{time.strftime('%Y%m%d-%H%M%S')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.write(f"{num_ranks} ranks; log: {log}\n")
    sys.stdout.flush()
    words = torchrun_command(num_ranks, options.max_restarts, "pipeline.train", options.command)
    code, asked = _run_torchrun(words, log)
    events = command.run.events
    outcome = outcome_of(read_events(events) if events.is_file() else [], begin, code, asked)
    return _EXIT_CODES.get(outcome, 1)


def choose_num_ranks(command: Command, num_gpus: int) -> int:
    """One a GPU; a CPU's cores are one device, which the columns of a network may share."""
    config = command.config
    if num_gpus and config.distributed.device != "cpu":
        return num_gpus
    return 2 if config.model.columns == "split" else 1


def num_gpus() -> int:
    """Those that a job started here would see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        return next((place for place, name in enumerate(names) if name in ("", "-1")), len(names))
    if shutil.which("nvidia-smi") is None:
        return 0
    done = subprocess.run(
        ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False
    )
    return len(done.stdout.splitlines()) if done.returncode == 0 else 0


def torchrun_command(
    num_ranks: int, max_restarts: int, module: str, arguments: Sequence[str]
) -> list[str]:
    """On this machine alone, at a free port. A hangup that nohup has warded off stays that."""
    signals = ["SIGTERM", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2"]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append("SIGHUP")
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *(f"--nproc_per_node={num_ranks}", f"--max-restarts={max_restarts}"),
        f"--signals-to-handle={','.join(signals)}",
        *("-m", module, *arguments),
    ]


def _run_torchrun(command: list[str], log: Path) -> tuple[int, str]:
    """Its exit code, and the last signal that came; what it writes goes on, and into `log`.

    Signals are passed on, but not Ctrl-C: the terminal sends that to torchrun too.
    """
    asked = ""
    environment = os.environ | {
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # else ranks that are started again do not meet
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SHUTDOWN_SECONDS),
    }
    with (
        log.open("wb") as file,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as child,
    ):

        def pass_on(number: int, _: FrameType | None) -> None:
            nonlocal asked
            asked = signal.Signals(number).name.removeprefix("SIG")
            if number != signal.SIGINT:
                child.send_signal(number)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, pass_on)
        assert child.stdout is not None
        _copy(child.stdout, file)
    return child.returncode, asked


def _copy(output: IO[bytes], file: IO[bytes]) -> None:
    """A full disk costs lines of the log, never the run."""
    targets = [sys.stdout.buffer, file]
    while content := os.read(output.fileno(), 1 << 16):
        for target in tuple(targets):
            try:
                target.write(content)
                target.flush()
            except OSError:
                targets.remove(target)
