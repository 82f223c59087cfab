"""Follows `RUN/events.jsonl` while others append to it."""

from __future__ import annotations

import os
from pathlib import Path

from data_prep.shard_set.typed import read_json
from pipeline.run.event_rows import event_of
from pipeline.run.events import Event
from pipeline.run.format_version import EVENTS_VERSION, check_format_version


class EventTail:
    """Reads each row once; whoever follows a run asks now and then for what is new."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""
        """The beginning of a line that is being written."""
        self._file: tuple[int, int] | None = None
        self.num_restarts = 0
        """How often the file was replaced or cut: then its rows are read again from the first."""
        self.faults: list[str] = []
        """A sentence for each line that is JSON, but no row."""

    def new_rows(self) -> list[Event]:
        """The rows of all whole lines since the last call; none while there is no file.

        Void attempts are included, and lines that are no rows are left out: see
        `pipeline.run.event_log.read_rows`. Raises `OSError` if the file cannot be read, and
        `ValueError` if its rows are of a newer format version than this program reads.
        """
        try:
            content = self._new_bytes()
        except FileNotFoundError:
            return []
        *lines, self._rest = (self._rest + content).split(b"\n")
        return [event for line in lines if (event := self._event_of(line)) is not None]

    def _new_bytes(self) -> bytes:
        with self._path.open("rb") as file:
            found = os.fstat(file.fileno())
            identity = found.st_dev, found.st_ino
            if self._file not in (None, identity) or found.st_size < self._offset:
                self._offset, self._rest = 0, b""
                self.num_restarts += 1
            self._file = identity
            file.seek(self._offset)
            content = file.read()
        self._offset += len(content)
        return content

    def _event_of(self, line: bytes) -> Event | None:
        try:
            row = read_json(line)
        except ValueError:
            return None  # cut by a kill
        if isinstance(row, dict) and row.get("kind") == "run":
            check_format_version(row.get("format_version", 1), EVENTS_VERSION, self._path)
        try:
            return event_of(row)
        except ValueError as error:
            self.faults.append(f"a line is not an event: {error}")
            return None
