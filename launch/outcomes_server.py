"""Serves to Prometheus how the runs below a folder stand, and conversions beside them.

It reads run directories, so it knows runs whose processes or hosts are gone. Its page has another
name for each folder: a Prometheus that watches another one gets no answer.
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
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from data_prep.shard_set.files import printable
from pipeline.config.schema import LOOPBACK
from pipeline.config.timeouts import KEPT_SECONDS
from pipeline.metrics.discovery import drop_unanswered
from pipeline.metrics.outcomes import RootOutcomes


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """A scrape is no news."""


def page_of(root: Path) -> str:
    """The path of the page for runs below `root`."""
    return f"/outcomes/{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}"


def bind_outcomes(root: Path, port: int, *, or_any: bool) -> WSGIServer:
    """A server of outcomes, which does not serve yet, on `port` or, if it is taken, on any.

    Raises `OSError` if it can listen on none of these.
    """
    from pipeline.metrics.conversions import RootConversions  # here: it imports Pillow and numpy

    registry = CollectorRegistry()
    registry.register(RootOutcomes(root, socket.gethostname()))
    registry.register(RootConversions(root))
    page = page_of(root)
    metrics: WSGIApplication = make_wsgi_app(registry)

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == page:
            return metrics(environ, start_response)
        start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [f"here are the outcomes of runs below {printable(str(root))}, at {page}\n".encode()]

    try:
        return make_server(LOOPBACK, port, answer, ThreadingWSGIServer, _Silent)
    except OSError as error:
        if not or_any or error.errno != errno.EADDRINUSE:
            raise OSError(
                f"cannot serve outcomes on {LOOPBACK}:{port}: {error.strerror}; "
                "give another --outcomes-port"
            ) from None
        return make_server(LOOPBACK, 0, answer, ThreadingWSGIServer, _Silent)


def serve(server: WSGIServer, targets: Path) -> None:
    """Serve until the process ends."""
    threading.Thread(target=keep_tidy, args=(targets,), daemon=True).start()
    server.serve_forever()


def keep_tidy(targets: Path) -> None:
    """Remove targets that nobody answers for, now and then."""
    while True:
        time.sleep(KEPT_SECONDS)
        drop_unanswered(targets)


def serve_beside(server: WSGIServer, targets: Path) -> None:
    """Serve in a process of its own, until this one ends, or what it becomes by `exec`.

    The new process waits for the end of a pipe that only this one keeps open, so it ends however
    this one does. It ignores Ctrl-C, which a terminal sends to both.
    """
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(writing)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=serve, args=(server, targets), daemon=True).start()
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    os.set_inheritable(writing, True)
    server.server_close()
