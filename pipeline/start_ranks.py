"""`python -m pipeline.start_ranks ARGUMENTS…`: torchrun, with its arguments, but quiet.

Each rank says in a sentence how it ended. torchrun adds pages of tracebacks for every rank that
leaves with a code other than 0, even if it was asked to stop, and then leaves with 1. This command
leaves with the code of the first such rank, and reports only those that were killed: then its code
is 128 and the signal's number, as shells have it. It leaves with 75 if its node has not met the
others, or has lost them, and if the job was asked to leave before this command started.

With --standalone nothing listens but on loopback: torchrun alone lets the whole network reach the
store of its ranks, from which it unpickles.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import socket
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from pipeline.config.timeouts import EXIT_BARRIER_SECONDS, LEAST_RENDEZVOUS_SECONDS
from pipeline.run.ending import (
    AGENT_VARIABLE,
    ASKED_VARIABLE,
    LAUNCHER_VARIABLE,
    ExitCode,
    end_with_parent,
    how_killed,
)


def main(arguments: Sequence[str]) -> int:
    os.environ[AGENT_VARIABLE] = str(os.getpid())
    _end_with_launcher()
    if ASKED_VARIABLE in os.environ and Path(os.environ[ASKED_VARIABLE]).exists():
        return ExitCode.STOPPED
    logging.disable()  # torchrun's own lines; the ranks are other processes
    # Rank 0 has the store, a new one for each attempt: in an old one ranks do not find each other.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else stacks when a store is gone
    # torch asks for the full name for its records alone, and where no name server answers each
    # question takes a minute.
    socket.getfqdn = lambda name="": name or socket.gethostname()
    try:
        return _run(arguments)
    except KeyboardInterrupt:  # torchrun has no handler yet
        return ExitCode.INTERRUPTED


def _end_with_launcher() -> None:
    """Get SIGTERM when the launcher is killed: nobody is left to read or stop the ranks."""
    launcher = os.environ.pop(LAUNCHER_VARIABLE, None)
    if launcher is not None:
        end_with_parent(signal.SIGTERM)
        if os.getppid() != int(launcher):  # it was killed before
            signal.raise_signal(signal.SIGTERM)


def _run(arguments: Sequence[str]) -> int:
    # Here: what takes seconds to import can be interrupted.
    from torch.distributed import DistError, run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import api as meeting
    from torch.distributed.launcher import api

    # Ranks end together, but a node that got a signal says nothing, and torchrun, which has no
    # option for it, would let the others wait for 300 seconds.
    agent, seconds = vars(api)["LocalElasticAgent"], EXIT_BARRIER_SECONDS
    vars(api)["LocalElasticAgent"] = functools.partial(agent, exit_barrier_timeout=seconds)
    kept: list[object] = []
    vars(meeting)["get_free_port"] = functools.partial(_reserve_port, kept)
    options = run.parse_args(list(arguments))
    if options.standalone:
        kept.append(_meet_here(options))
    try:
        run.run(options)
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        killed = {rank: -code for rank, code in codes.items() if code < 0}
        for rank, number in killed.items():
            sys.stderr.write(f"error: rank {rank} {how_killed(number)}\n")
        if killed:
            return 128 + min(killed.values())
        return max(error.get_first_failure()[1].exitcode, ExitCode.FAILED)
    except SignalException as stop:
        return 128 + stop.sigval
    except Exception as error:  # mostly of the rendezvous, in whatever form
        reason = str(error).partition("\n")[0]
        sys.stderr.write(f"error: the ranks cannot be started: {type(error).__name__}: {reason}\n")
        is_of_others = isinstance(error, meeting.RendezvousError | DistError)
        return ExitCode.STOPPED if is_of_others else ExitCode.FAILED
    return ExitCode.DONE


def _reserve_port(kept: list[object]) -> int:
    """A port where rank 0 will listen: until then the system gives it to nobody else.

    torchrun's own choice is free only when it is made, seconds before rank 0 takes it. Sockets that
    may be used again share a port while only one of them listens.
    """
    place = socket.socket()
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    place.bind(("", 0))
    kept.append(place)
    return int(place.getsockname()[1])


def _meet_here(options: Namespace) -> object:
    """Where torchrun's ranks meet, instead of its own store; to be kept as long as they run."""
    from pipeline.config.schema import LOOPBACK
    from pipeline.ranks.stores import host_store

    store = host_store(f"{LOOPBACK}:0", LEAST_RENDEZVOUS_SECONDS)
    options.standalone = False
    options.rdzv_backend, options.rdzv_id, options.rdzv_conf = "c10d", "alexnet", "is_host=0"
    options.rdzv_endpoint = f"{LOOPBACK}:{store.port}"
    options.local_addr = LOOPBACK
    return store


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
