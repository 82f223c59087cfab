"""Where Prometheus finds exporters: their `file_sd` targets, and the removal of stale ones."""

from __future__ import annotations

import contextlib
import json
import logging
import ssl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Self
from urllib.parse import urlencode

from data_prep.shard_set.files import as_text, write_atomically
from data_prep.shard_set.typed import check_types, read_json
from pipeline.metrics.pages import Identity

_EXPORTER = "__param_exporter"
"""The label that Prometheus turns into a parameter of each scrape."""

_REFUSALS = (ssl.SSLError, ConnectionResetError, BrokenPipeError)
"""How a connection without the certificate that a server wants ends."""

_ANSWERS = (HTTPStatus.OK, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
"""The latter two are those of a proxy that wants a password, and cannot be asked."""

_ANSWER_SECONDS = 2.0
_NUM_ASKED_AT_ONCE = 32

_log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class Target:
    """The `file_sd` entry at `path` by which Prometheus finds the exporter at `address`."""

    path: Path
    content: bytes
    address: str
    labels: Mapping[str, str]
    _is_written: bool = False
    _has_failed: bool = False

    @classmethod
    def of(cls, path: Path, identity: Identity, *, address: str, scheme: str) -> Self:
        """Its labels are those of `identity`; Prometheus sends the exporter's id along."""
        labels = identity.labels | {"__scheme__": scheme, _EXPORTER: identity.exporter}
        content = json.dumps([{"targets": [address], "labels": labels}]).encode() + b"\n"
        return cls(path=path, content=content, address=address, labels=labels)

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """None if it was not written by an exporter."""
        try:
            content = path.read_bytes() if path.is_file() else b""  # for a pipe it would wait
            (entry,) = read_json(content)
            ((address,), labels) = entry["targets"], entry["labels"]
            check_types((address, labels), tuple[str, Mapping[str, str]], "the entry")
        except (OSError, KeyError, TypeError, ValueError):
            return None
        if _EXPORTER not in labels:
            return None
        return cls(path=path, content=content, address=address, labels=labels)

    def announce(self) -> None:
        """Write the file, and again whenever it is gone; a failure is logged once."""
        try:
            if self._is_written and self.path.exists():
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, self.content, durable=False)
            self._is_written = True
        except OSError as error:
            if not self._has_failed:
                _log.warning("cannot write %s: %s; will try again", self.path, error.strerror)
            self._has_failed = True

    def withdraw(self) -> bool:
        """Delete the file unless it has become another target; returns whether it is deleted."""
        with contextlib.suppress(OSError):
            if self.path.read_bytes() == self.content:
                self.path.unlink()
                return True
        return False

    def is_answered(self) -> bool:
        """Whether this exporter is there, as far as can be known."""
        try:
            with contextlib.closing(self._connect()) as connection:
                query = urlencode({"exporter": self.labels[_EXPORTER]})
                connection.request("GET", f"/metrics?{query}")
                return connection.getresponse().status in _ANSWERS
        except _REFUSALS:
            return True
        except (OSError, HTTPException, ValueError):
            return False

    def _connect(self) -> HTTPConnection:
        """To a server with any certificate."""
        if self.labels.get("__scheme__") != "https":
            return HTTPConnection(self.address, timeout=_ANSWER_SECONDS)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return HTTPSConnection(self.address, timeout=_ANSWER_SECONDS, context=context)


def drop_unanswered(
    directory: Path, *labels: tuple[str, str], own: Target | None = None
) -> list[str]:
    """Delete the targets in `directory` that no exporter answers for; returns a line for each.

    With `labels` only those that have one of them; never the caller's `own`. An exporter that is
    alive and could not be reached writes its target again.
    """
    read = [target for path in directory.glob("*.json") if (target := Target.read(path))]
    found = [target for target in read if own is None or target.content != own.content]
    wanted = {(name, as_text(value)) for name, value in labels}  # as a target has them
    asked = [t for t in found if not wanted or not t.labels.items().isdisjoint(wanted)]
    with ThreadPoolExecutor(_NUM_ASKED_AT_ONCE) as pool:
        answers = list(pool.map(Target.is_answered, asked))
    return [
        f"removed {target.path}: no exporter of that run answers at {target.address}"
        for target, is_answered in zip(asked, answers, strict=True)
        if not is_answered and target.withdraw()
    ]


def location_of(address: str, port: int, host: str) -> str:
    """Where another machine finds what listens on `address`."""
    if address in ("", "0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return f"{host}:{port}"
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
