"""Stores of torch, where the processes of a job meet."""

from __future__ import annotations

import socket
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not exported

from pipeline.config.schema import LOOPBACK


def host_store(place: str, timeout_seconds: float) -> TCPStore:
    """A store in this process, at HOST:PORT; port 0 is any free one.

    torch's own listens at all addresses of the host. At `LOOPBACK` this one is for this host alone.
    Raises `RuntimeError` if it cannot listen, such as at a port that another program uses.
    """
    host, port, timeout = _parts(place, timeout_seconds)
    listener = None
    if host == LOOPBACK:
        try:
            with socket.create_server((host, port)) as own:
                port, listener = own.getsockname()[1], own.detach()
        except OSError as error:
            raise RuntimeError(f"cannot listen at {place}: {error.strerror}") from None
    return TCPStore(
        host,
        port,
        is_master=True,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=listener,
    )


def join_store(place: str, timeout_seconds: float) -> TCPStore:
    """The one that another process hosts there; `RuntimeError` if nobody answers in time."""
    host, port, timeout = _parts(place, timeout_seconds)
    return TCPStore(host, port, timeout=timeout, wait_for_workers=False)


def _parts(place: str, timeout_seconds: float) -> tuple[str, int, timedelta]:
    host, _, port = place.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"MASTER_ADDR and MASTER_PORT are {place!r}, expected HOST:PORT")
    return host, int(port), timedelta(seconds=timeout_seconds)
