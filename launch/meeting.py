"""Where the nodes of a job meet that nothing starts at the same time, such as pods."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data_prep.shard_set.streams import say
from pipeline.metrics.addresses import address_towards
from pipeline.run.ending import ExitCode
from pipeline.run.events import EndEvent, Event, RunEvent

_PROBE_SECONDS = 5.0
_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Meeting:
    """One node's view of it: node 0 holds the store that all others connect to."""

    place: str
    """HOST:PORT of node 0."""
    num_nodes: int
    node_rank: int

    def wait(self, is_given_up: Callable[[], bool]) -> bool:
        """Wait until the place answers; False if it was given up before.

        A pod may start long before another one, and its name has no address until then. torchrun
        does not wait for that.
        """
        host, _, port = self.place.rpartition(":")
        is_said = False
        while self.node_rank and not is_given_up():
            try:
                socket.create_connection((host, int(port)), _PROBE_SECONDS).close()
            except OSError as error:
                if not is_said:
                    say(f"waiting for node 0 at {self.place}: {error}")
                is_said = True
                time.sleep(_PAUSE_SECONDS)
            else:
                break
        return not is_given_up()

    def torchrun_options(self) -> list[str]:
        """Call it after `wait`: only then the way to node 0 is known.

        By this node's address on that way the others reach its ranks; its own name may be unknown
        to them.
        """
        own = address_towards(self.place)
        return [
            *(f"--nnodes={self.num_nodes}", "--rdzv_backend=c10d", "--rdzv_id=alexnet"),
            *(f"--rdzv_endpoint={self.place}", f"--rdzv_conf=is_host={int(self.node_rank == 0)}"),
            *([f"--local-addr={own}"] if own else []),
        ]


def has_lost_nodes(own: Sequence[Event], code: int) -> bool:
    """Whether a job on several nodes that failed only lacked another node, and can go on with it.

    `own` are the job's events, and `code` is that of `pipeline.start_ranks`: it is above 128 if a
    signal has killed a rank of this node, which could happen again at once.
    """
    if code == ExitCode.STOPPED or code > 128:
        return code == ExitCode.STOPPED
    if own and isinstance(own[-1], EndEvent):
        return own[-1].cause is not None
    return any(isinstance(row, RunEvent) for row in own)  # rank 0 has left no last word
