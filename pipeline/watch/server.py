"""`python -m launch watch RUN_ROOT`: the page and its data, on loopback.

The page asks for its data every two seconds. Browsers keep pages of other servers from reading it:
they may not read other origins, and a name of theirs that leads to this host is refused here.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from dataclasses import dataclass
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from data_prep.shard_set.fields import within
from data_prep.shard_set.options import Named
from data_prep.shard_set.streams import say
from pipeline.config.schema import LOOPBACK
from pipeline.run.directory import RunDirectory
from pipeline.watch.root import Root
from pipeline.watch.text import shown

_OWN_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?", re.IGNORECASE)
"""With any port: it may be that of a tunnel."""

_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Serve a page on loopback that shows all runs of a folder, as they go on."""

    run_root: Annotated[Path, Named("RUN_ROOT")]
    """The folder that holds the run directories."""
    port: Annotated[int, within(1, 65535, "a port from ")] = 8000
    """Where to serve it."""


def run(options: Options) -> None:
    """Serve until Ctrl-C. Raises `OSError` or `ValueError` for a wrong port or folder."""
    path = options.run_root
    if not path.is_dir():
        raise ValueError(f"{path} is not a directory: give the one that holds the run directories")
    if RunDirectory(path).has_begun:
        raise ValueError(f"{path} is a run directory: give the folder that holds it")
    root = Root(path)
    with bind(root, options.port) as server:
        threading.Thread(target=root.follow, daemon=True).start()
        say(f"{root.path}: http://{LOOPBACK}:{options.port}/")
        server.serve_forever()


class Server(ThreadingHTTPServer):
    """Serves the page of one root."""

    def __init__(self, root: Root, port: int) -> None:
        self.root = root
        folder = resources.files("pipeline.watch")
        self.files = {
            path: (folder.joinpath(name).read_bytes(), f"{kind}; charset=utf-8")
            for path, (name, kind) in _FILES.items()
        }
        contents = b"".join(content for content, _ in self.files.values())
        self.version = sha256(contents).hexdigest()
        """Of the page: an open one that is older loads itself again."""
        super().__init__((LOOPBACK, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves in the middle of an answer is no news."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def bind(root: Root, port: int) -> Server:
    """A server that does not serve yet. Raises `OSError` if it cannot listen on the port."""
    try:
        return Server(root, port)
    except OSError as error:
        raise OSError(
            f"cannot serve on {LOOPBACK}:{port}: {error.strerror}; give another --port"
        ) from None


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "alexnet-watch", ""
    timeout = 30

    def do_GET(self) -> None:
        status, kind, content = self._answer()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_GET

    def _answer(self) -> tuple[int, str, bytes]:
        path, _, query = self.path.partition("?")
        if not _OWN_HOST.fullmatch(self.headers.get("Host", "")):
            return 421, "text/plain", b"this page is served to names of loopback alone\n"
        if path in self.server.files:
            content, kind = self.server.files[path]
            return 200, kind, content
        if path != "/state.json":
            return 404, "text/plain", b"expected /\n"
        state = self.server.root.state(query, time.time()) | {"version": self.server.version}
        return 200, "application/json", json.dumps(shown(state), allow_nan=False).encode()

    def end_headers(self) -> None:
        """Errors get them, too."""
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """A request is no news."""
