"""Fuzzers of what ranks leave for each other in the job's store."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from torch.distributed import HashStore  # type: ignore[attr-defined]  # not exported

from pipeline.ranks.failure import FirstFailure
from pipeline.ranks.heartbeats import Board, Heartbeat, judge
from pipeline.ranks.threads import THREADS
from tests.fuzz.harness import Harness, Target, check_types
from tests.fuzz.mutation import change_json

_HEARTBEAT = Heartbeat(
    count=3,
    host="node17",
    phase="waiting for other ranks",
    step=12,
    seconds=1.5,
    is_waiting=True,
    limit_seconds=60.0,
)
_FAILURES = (
    FirstFailure("rank 1 on node17 hangs"),
    FirstFailure("lost another rank", 1, "node17", "lost_rank", is_main_silent=True),
)


def _heartbeat(_folder: Path) -> Target:
    """Of two ranks, which are judged by them."""
    store = HashStore()
    board = Board(store, 2, 1.0, THREADS)
    board.post(0, _HEARTBEAT)

    def read(content: bytes) -> None:
        store.set("pulse/1", _text(content))
        found = board.heartbeats()
        check_types(found, list[Heartbeat | None])
        check_types(judge(found, found), FirstFailure | None)

    return Target([json.dumps(asdict(_HEARTBEAT)).encode()], read)


def _first_failure(_folder: Path) -> Target:
    def read(content: bytes) -> None:
        store = HashStore()
        store.set("last word", _text(content))
        check_types(FirstFailure.find(store), FirstFailure)
        check_types(_FAILURES[0].publish(store), FirstFailure)

    return Target([json.dumps(asdict(failure)).encode() for failure in _FAILURES], read)


def _text(content: bytes) -> str:
    """As the store takes it; what is no text in UTF-8 cannot come from a rank."""
    return content.decode(errors="replace")


HARNESSES = (
    Harness(name="heartbeat", prepare=_heartbeat, errors=(RuntimeError,), changes=(change_json,)),
    Harness(
        name="first-failure",
        prepare=_first_failure,
        errors=(RuntimeError,),
        changes=(change_json,),
    ),
)
