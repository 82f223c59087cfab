"""Serves to a Prometheus on this host how the runs below a directory stand.

It reads their run directories, so it tells of those too whose processes or hosts are gone. Its page
has a name of its own for each directory: a Prometheus that watches another one gets no answer.
"""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from pipeline.metrics.discovery import drop_unanswered
from pipeline.metrics.outcomes import KEPT_SECONDS, RootOutcomes
from pipeline.run.directory import RunDirectory

ADDRESS = "127.0.0.1"
DEFAULT_PORT = 9752


class _Server(ThreadingMixIn, WSGIServer):
    """While it serves, targets that nobody answers for are removed, now and then."""

    daemon_threads = True
    targets: Path
    next_look: float

    def service_actions(self) -> None:
        """Called twice a second while it serves."""
        if time.monotonic() >= self.next_look:
            self.next_look = time.monotonic() + KEPT_SECONDS
            threading.Thread(target=drop_unanswered, args=(self.targets,), daemon=True).start()


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """A scrape is no news."""


def page_of(root: Path) -> str:
    """The path of the page for runs below `root`."""
    return f"/outcomes/{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}"


def bind(root: Path, port: int, *, or_any: bool) -> WSGIServer:
    """A server of that page, which does not serve yet, on `port` or, if it is taken, on any.

    Raises `OSError` if it can listen on none of these.
    """
    registry = CollectorRegistry()
    registry.register(RootOutcomes(root, socket.gethostname()))
    page = page_of(root)
    metrics: WSGIApplication = make_wsgi_app(registry)

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == page:
            return metrics(environ, start_response)
        start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [f"here are the outcomes of runs below {root}, at {page}\n".encode()]

    try:
        server = make_server(ADDRESS, port, answer, _Server, _Silent)
    except OSError as error:
        if not or_any or error.errno != errno.EADDRINUSE:
            raise OSError(
                f"cannot serve outcomes on {ADDRESS}:{port}: {error.strerror}; "
                "give another --outcomes-port"
            ) from None
        server = make_server(ADDRESS, 0, answer, _Server, _Silent)
    server.targets = RunDirectory(root / "any-run").targets
    server.next_look = time.monotonic() + KEPT_SECONDS
    return server


def serve_beside(server: WSGIServer) -> None:
    """Serve in a process of its own, until this one ends, or what it becomes by `exec`.

    However it ends: the other one waits for the end of a pipe that only this one keeps open, and
    takes no notice of a Ctrl-C that is for both.
    """
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(writing)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    os.set_inheritable(writing, True)
    server.server_close()
