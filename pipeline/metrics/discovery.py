"""Who serves a run's metrics on this node, and where Prometheus finds it."""

from __future__ import annotations

import contextlib
import json
import logging
import ssl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Self
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import HTTPSHandler, OpenerDirector, ProxyHandler, build_opener

from data_prep.shard_set.files import write_atomically
from data_prep.shard_set.locks import lock_if_possible
from pipeline.metrics.pages import Identity

_EXPORTER = "__param_exporter"
"""The label of which Prometheus makes a parameter of each scrape."""

_REFUSALS = (ssl.SSLError, ConnectionResetError, BrokenPipeError)
"""What becomes of a connection without the certificate that the server wants."""

_ANSWER_SECONDS = 2.0
_NUM_ASKED_AT_ONCE = 32
_LEAVE_SECONDS = 10.0

_log = logging.getLogger(__name__)


class ExporterLock:
    """The right to serve a run on this node: a locked file that holds the server's address."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a+b", buffering=0)
        self._written = ""

    def take_unless_served(self, begin: str, end: str) -> bool:
        """Whether the lock is now this process's, until it ends.

        An owner whose words do not begin and end so is asked to leave, by deleting them; one that
        has said nothing yet stays.
        """
        is_taken = self._lock()
        owner = "" if is_taken else self.owner
        if owner and not (owner.startswith(begin) and owner.endswith(end)):
            self._file.truncate(0)
            is_taken = self._lock(_LEAVE_SECONDS)
        if is_taken:
            self.owner = ""  # that of one that was killed is nobody's
        return is_taken

    def _lock(self, wait_seconds: float = 0.0) -> bool:
        return lock_if_possible(self._file.fileno(), self._path, wait_seconds=wait_seconds)

    @property
    def owner(self) -> str:
        return self._path.read_text().strip()

    @owner.setter
    def owner(self, description: str) -> None:
        with contextlib.suppress(OSError):  # a full disk: the lock holds without the words
            self._file.truncate(0)
            self._file.write(f"{description}\n".encode() if description else b"")
            self._written = description

    def close(self) -> None:
        """The lock ends."""
        self._file.close()

    def is_wanted_by_another(self) -> bool:
        """Whether somebody has asked the owner, this process, to leave."""
        with contextlib.suppress(OSError):
            return self.owner != self._written
        return False


class Target:
    """The `file_sd` entry in `directory` by which Prometheus finds the exporter at `address`.

    Its labels are those of `identity`, and what Prometheus sends along says whose it is.
    """

    def __init__(
        self, directory: Path, name: str, identity: Identity, *, address: str, scheme: str
    ) -> None:
        self.path = directory / f"{name}-{identity.node}.json"
        labels = identity.labels | {"__scheme__": scheme, _EXPORTER: identity.exporter}
        self._content = json.dumps([{"targets": [address], "labels": labels}]).encode() + b"\n"
        self._is_written = False
        self._has_failed = False

    def announce(self) -> None:
        """Write it, and again whenever it is gone; a failure is logged once."""
        try:
            if self._is_written and self.path.exists():
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, self._content, durable=False)
            self._is_written = True
        except OSError as error:
            if not self._has_failed:
                _log.warning("cannot write %s: %s; trying on", self.path, error.strerror)
            self._has_failed = True

    def withdraw(self) -> None:
        """Delete it, if it is still this exporter's."""
        _delete(self.path, self._content)


def _delete(path: Path, content: bytes) -> bool:
    """Delete a target unless it has become another one; returns whether it is deleted."""
    with contextlib.suppress(OSError):
        if path.read_bytes() == content:
            path.unlink()
            return True
    return False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Announced:
    """The target that a file holds."""

    path: Path
    content: bytes
    address: str
    labels: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """None if it was not written by an exporter."""
        try:
            content = path.read_bytes()
            (entry,) = json.loads(content)
            ((address,), labels) = entry["targets"], dict(entry["labels"])
        except (OSError, KeyError, TypeError, ValueError):
            return None
        if not {"run", "node", _EXPORTER} <= labels.keys():
            return None
        return cls(path=path, content=content, address=str(address), labels=labels)

    def is_answered(self) -> bool:
        """Whether the exporter that it stands for is there, as far as that can be told."""
        query = {name: self.labels[name] for name in ("run", "node")}
        query["exporter"] = self.labels[_EXPORTER]
        scheme = self.labels.get("__scheme__", "http")
        url = f"{scheme}://{self.address}/metrics?{urlencode(query)}"
        try:
            with _opener().open(url, timeout=_ANSWER_SECONDS) as response:
                return bool(response.status == HTTPStatus.OK)
        except HTTPError as error:  # a proxy that wants a password cannot be asked
            return error.code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
        except OSError as error:  # nor can a server that wants a certificate
            cause = error.reason if isinstance(error, URLError) else error
            return isinstance(cause, _REFUSALS)
        except (HTTPException, ValueError):
            return False


def _opener() -> OpenerDirector:
    """Asks directly, whatever proxy this process is told of, and takes every certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return build_opener(ProxyHandler({}), HTTPSHandler(context=context))


def drop_unanswered(directory: Path, *labels: tuple[str, str]) -> list[str]:
    """Delete the targets in `directory` that no exporter answers for; returns a line for each.

    With `labels` only those that have one of them. One that cannot be reached at the moment
    announces itself again, so none is lost that lives.
    """
    found = [target for path in directory.glob("*.json") if (target := _Announced.read(path))]
    asked = [t for t in found if not labels or not t.labels.items().isdisjoint(labels)]
    with ThreadPoolExecutor(_NUM_ASKED_AT_ONCE) as pool:
        answers = list(pool.map(_Announced.is_answered, asked))
    return [
        f"removed {target.path}: no exporter of that run answers at {target.address}"
        for target, is_answered in zip(asked, answers, strict=True)
        if not is_answered and _delete(target.path, target.content)
    ]


def location_of(address: str, port: int, host: str) -> str:
    """Where another machine finds what listens on `address`."""
    if address in ("", "0.0.0.0", "::"):
        return f"{host}:{port}"
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
