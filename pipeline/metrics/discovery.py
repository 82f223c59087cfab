"""Who serves a run's metrics on this node, and where Prometheus finds it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from pathlib import Path

from data_prep.files import write_atomically

_log = logging.getLogger(__name__)


class Claim:
    """The right to serve a run on this node: a locked file that holds the server's address.

    A process that finds it taken touches the file. The owner takes that as a sign that ranks are
    about to start, and stays: it might otherwise leave between this look and their first metrics.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a+b", buffering=0)

    def take(self) -> bool:
        """Whether the claim is now this process's, until it ends."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with contextlib.suppress(OSError):  # another user's, or a file system without times
                os.utime(self._path)
            return False
        except OSError as error:  # a file system without locks, such as Lustre without -o flock
            _log.warning("cannot lock %s: %s; serving without", self._path, error.strerror)
        return True

    @property
    def owner(self) -> str:
        return self._path.read_text().strip()

    @owner.setter
    def owner(self, description: str) -> None:
        with contextlib.suppress(OSError):  # a full disk: the lock holds without the words
            self._file.truncate(0)
            self._file.write(f"{description}\n".encode())

    @property
    def touched(self) -> int:
        """When somebody last asked for it; a number that changes."""
        with contextlib.suppress(FileNotFoundError):
            return self._path.stat().st_mtime_ns
        return 0


class Target:
    """The `file_sd` entry in `directory` by which Prometheus finds this exporter."""

    def __init__(self, directory: Path, *, address: str, run: str, node: str) -> None:
        self.path = directory / f"{run}-{node}.json"
        entry = {"targets": [address], "labels": {"run": run, "node": node}}
        self._content = json.dumps([entry]).encode() + b"\n"
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
        with contextlib.suppress(OSError):
            if self.path.read_bytes() == self._content:
                self.path.unlink()


def location_of(address: str, port: int, host: str) -> str:
    """Where another machine finds what listens on `address`."""
    if address in ("", "0.0.0.0", "::"):
        return f"{host}:{port}"
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
