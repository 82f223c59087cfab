"""The connections between ranks, so that one can break them and free the others.

torch 2.13 can abort a group of gloo, but that closes no connection: another rank that waits for
this one in a collective would wait until its deadline.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path


class Links:
    """Of one process, those that its groups have opened."""

    def __init__(self) -> None:
        self._noted: set[str] = set()

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Note the connections that are opened in the block."""
        before = _sockets().keys()
        try:
            yield
        finally:
            self._noted |= _sockets().keys() - before

    def limit(self, seconds: float) -> None:
        """Let what waits for an answer so long fail: for most of a store's torch has no deadline.

        Such a connection is of no more use: the answer may still come.
        """
        timeval = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
        self._each(lambda link: link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval))

    def break_off(self) -> None:
        """Break all of them, in both directions; what waits on them fails, here and there.

        Sockets that listen stay: gloo would abort the process.
        """
        self._each(_shut_down)
        self._noted.clear()

    def _each(self, act: Callable[[socket.socket], None]) -> None:
        """Of those that are open still."""
        sockets = _sockets()
        for name in self._noted & sockets.keys():
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(sockets[name])) as link:
                act(link)


def _shut_down(link: socket.socket) -> None:
    if not link.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        link.shutdown(socket.SHUT_RDWR)


def _sockets() -> dict[str, int]:
    """This process's open sockets: the number of each, by what names it as long as it is open."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            name = str(entry.readlink())
            if name.startswith("socket:"):
                found[name] = int(entry.name)
    return found
