"""A web server on loopback that serves a folder and does to chosen files what networks do."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

Fault = Literal["drop", "stall", "silence", "503", "404", "403", "short", "long", "flip", "none"]


class FlakyServer:
    """Serves the files of `folder`; a request for a file meets the next of its `faults`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: defaultdict[str, list[Fault]] = defaultdict(list)
        self.requests: Counter[str] = Counter()
        self.goes_on = threading.Event()
        """Ends what stalls."""
        self.has_stalled = threading.Event()
        self._lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with contextlib.suppress(ConnectionError):
                    owner.answer(
                        self, unquote(self.path.partition("?")[0].removeprefix("/shards/"))
                    )

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}
        )
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/shards"

    def answer(self, handler: BaseHTTPRequestHandler, name: str) -> None:
        with self._lock:
            self.requests[name] += 1
            fault = self.faults[name].pop(0) if self.faults[name] else "none"
        path = self.folder / name
        if fault in ("403", "404", "503") or not path.exists():
            handler.send_error(int(fault) if fault.isdecimal() else 404)
            return
        content = path.read_bytes()
        half = len(content) // 2
        if fault == "silence":
            self._stall()
        if fault == "short":
            content = content[:half]
        elif fault == "long":
            content += b"more"
        elif fault == "flip":
            content = content[:half] + bytes([content[half] ^ 4]) + content[half + 1 :]
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[:half])
        handler.wfile.flush()
        if fault == "stall":
            self._stall()
        if fault != "drop":
            handler.wfile.write(content[half:])

    def _stall(self) -> None:
        self.has_stalled.set()
        self.goes_on.wait()

    def has_just_stalled(self) -> bool:
        """Whether an answer has stalled since the call before."""
        has_stalled = self.has_stalled.is_set()
        self.has_stalled.clear()
        return has_stalled

    def close(self) -> None:
        self.goes_on.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[FlakyServer]:
    server = FlakyServer(folder)
    try:
        yield server
    finally:
        server.close()
