"""Where a job on one host listens, and the port that its ranks are given."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.start_ranks import _reserve_port
from tests.integration.training import make_shards, training, wait_for_step
from tests.launch.test_local import LONG, children_of, start

_LISTENS = "0A"  # of linux/tcp_states.h


def tree(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):  # it has ended
        for child in children_of(pid):
            yield from tree(child)


def links_of(pid: int) -> Iterator[str]:
    """What its open files are; it opens and closes some meanwhile."""
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                yield str(link.readlink())


def listening(pid: int) -> set[str]:
    """Addresses at which `pid` and its children listen, as /proc has them: with a port, in hex."""
    links = (link for one in tree(pid) for link in links_of(one))
    own = {found[1] for link in links if (found := re.match(r"socket:\[(\d+)\]", link))}
    tables = (Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6"))
    sockets = [line.split() for table in tables for line in table]
    return {words[1] for words in sockets if words[3] == _LISTENS and words[9] in own}


@pytest.mark.slow
@pytest.mark.parametrize("warm_restarts", [0, 1])
def test_a_job_on_one_host_listens_on_loopback_alone(tmp_path: Path, warm_restarts: int) -> None:
    shards, run = make_shards(tmp_path / "shards"), tmp_path / "run"
    words = ("--distributed.warm-restarts", warm_restarts)
    with start("--nproc", 2, *training(shards, run, *LONG, *words)) as job:
        wait_for_step(run, 1)
        found = listening(job.pid)
    assert len(found) > 2
    assert {address.partition(":")[0] for address in found} == {"0100007F"}


def test_the_port_of_the_ranks_is_kept_for_them() -> None:
    """Nobody gets it by chance, and who asks for it can listen there, on any of its addresses."""
    kept: list[object] = []
    port = _reserve_port(kept)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    for address in ("127.0.0.1", ""):
        with socket.create_server((address, port)):
            pass
    (place,) = kept
    assert isinstance(place, socket.socket)
    place.close()
