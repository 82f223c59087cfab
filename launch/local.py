"""`python -m launch local RECIPE …`: torchrun on this machine, one rank a device.

Started on each of several machines, it is a job on all of them.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Annotated

from data_prep.shard_set.fields import Limit, at_least, wrong
from data_prep.shard_set.options import Named, Rest
from data_prep.shard_set.streams import say
from launch.meeting import Meeting, has_lost_nodes
from launch.options import refuse_misplaced
from launch.outcome import is_new_run, outcome_of
from launch.torchrun import local_environment, run_torchrun, torchrun_command
from pipeline.config.model import ranks_per_replica
from pipeline.config.order import Surroundings
from pipeline.config.timeouts import SHUTDOWN_VARIABLE
from pipeline.run.console import Console, counted
from pipeline.run.ending import exit_code_of
from pipeline.run.event_log import end_of, of_training, read_events, write_submission
from pipeline.run.events import EndEvent, RunEvent, SubmittedTo
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

    code, asked = run_torchrun(torchrun, log, events, meeting)
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
