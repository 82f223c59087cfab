"""How a run ends, declared once: what asks it to stop, how it was left, and its exit codes.

a stop source ─▶ the ranks save and leave ─▶ outcome of the process group, its last event
                                             outcome of the job ─▶ exit code, requeue or not
"""

from __future__ import annotations

import ctypes
import enum
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, assert_never, get_args

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


class ExitCode(enum.IntEnum):
    """What ranks, the launcher and SLURM jobs leave with."""

    DONE = 0
    """All that was asked for is done."""
    FAILED = 1
    STOPPED = 75
    """The run was asked to stop and can go on: EX_TEMPFAIL of sysexits.h, 'try again'."""
    INTERRUPTED = 130
    """Ctrl-C ended the process on the spot, as shells have it."""


class StopSource(enum.StrEnum):
    """What asks the ranks to stop; of several at once, the last in this list counts."""

    SIGTERM = "SIGTERM"
    SIGINT = "SIGINT"
    SIGHUP = "SIGHUP"
    SIGUSR1 = "SIGUSR1"
    """SLURM's warning that the time of the job runs out."""
    SIGUSR2 = "SIGUSR2"
    END_OF_LAUNCHER = "end of torchrun"
    """The process that looks after the ranks is gone."""
    STOP_FILE = "STOP file"
    """Somebody wants the run to stop, and not to go on by itself."""


STOP_SIGNALS = tuple(
    signal.Signals[source] for source in StopSource if source in signal.Signals.__members__
)

EndOutcome = Literal["completed", "stopped", "failed"]
"""How a process group left: all steps are done, it was stopped before, or it failed."""

RunOutcome = Literal["running", EndOutcome, "killed"]
"""How a run or a rank is: at work, how it left, or killed before it could say so."""

RUN_OUTCOMES: tuple[RunOutcome, ...] = get_args(RunOutcome)

FailureCause = Literal["lost_rank"]
"""Why a process group failed, if its error is only a consequence.

lost_rank  another rank was gone: it was killed, hangs, or its host is gone
"""

JobOutcome = Literal["completed", "interrupted", "stopped", "stuck", "failed"]
"""What a job has left of a run.

completed    all steps asked for are done, or were before
interrupted  a signal ended it early: it can go on
stopped      somebody asked for it with a file STOP: it can go on, but not by itself
stuck        its time ran out (SIGUSR1) before any step it did was saved: it would again
failed       anything else, also a kill
"""

AGENT_VARIABLE = "ALEXNET_AGENT"
"""Environment variable: the id of the process that looks after the ranks."""

ASKED_VARIABLE = "ALEXNET_ASKED"
"""Environment variable: a file that is there as soon as the job was asked to leave."""

LAUNCHER_VARIABLE = "ALEXNET_LAUNCHER"
"""Environment variable: the id of the launcher; what it starts ends when it is killed."""


def exit_code_of(outcome: JobOutcome) -> ExitCode:
    match outcome:
        case "completed":
            return ExitCode.DONE
        case "interrupted" | "stopped" | "stuck":
            return ExitCode.STOPPED
        case "failed":
            return ExitCode.FAILED
        case unknown:
            assert_never(unknown)


def handled_signals() -> list[signal.Signals]:
    """`STOP_SIGNALS`, but no SIGHUP under nohup."""
    is_warded_off = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in STOP_SIGNALS if number != signal.SIGHUP or not is_warded_off]


def signals_to_handle(signals: Iterable[signal.Signals]) -> str:
    """The value of torchrun's `--signals-to-handle` that forwards these signals to the ranks."""
    return ",".join(["SIGQUIT", *(number.name for number in signals)])


def how_killed(number: int) -> str:
    """By which signal a rank was killed, to follow its name."""
    hint = "; was memory short? 'dmesg' says so" if number == signal.SIGKILL else ""
    return f"was killed by {signal.Signals(number).name}{hint}"


def end_with_parent(number: int) -> None:
    """Let this process get signal `number` when the one that has started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def process_start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None if it is gone or a zombie.

    With the pid it names one process for as long as the host is up: pids are reused.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()  # the command's name may hold spaces
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
