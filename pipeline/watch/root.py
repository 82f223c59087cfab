"""All runs of a folder, and what else lies there: read again and again by one thread."""

from __future__ import annotations

import os
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.shard_set.files import describe, printable
from data_prep.shard_set.manifest import MANIFEST_NAME
from pipeline.run.directory import RunDirectory
from pipeline.watch.view import RunView

_PAUSE_SECONDS = 1.0
_REST = 4
"""Times as long as reading took, so that it takes at most a fifth of a core."""


@dataclass(slots=True)
class _Entry:
    """A folder or a link in the root."""

    name: str
    inode: int
    changed: float
    what: str = ""
    """Why nothing else is shown of it."""
    view: RunView | None = None
    """If it is a run."""

    def summary(self) -> dict[str, Any]:
        found = {"name": printable(self.name), "state": "unreadable", "what": self.what}
        return found if self.what or self.view is None else found | {**self.view.summary}


class Root:
    """What is in the folder `path`, as of a moment ago."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._entries: dict[str, _Entry] = {}
        """By the percent-encoded bytes of the name, which need not be text."""
        self._fault = ""

    def follow(self) -> None:
        """Read what is new until the process ends."""
        while True:
            begin = time.monotonic()
            self.refresh()
            time.sleep(_PAUSE_SECONDS + _REST * (time.monotonic() - begin))

    def refresh(self) -> None:
        try:
            self._entries, self._fault = self._found(), ""
        except OSError as error:
            self._entries, self._fault = {}, describe(error)
        for entry in sorted(self._entries.values(), key=lambda each: -each.changed):
            try:
                entry.view = self._view(entry)
                if entry.view is not None:
                    entry.view.refresh(time.time())
                    entry.what = ""
            except Exception as error:  # whatever lies there must not hide the others
                entry.what = f"cannot be read: {describe(error)}"

    def _found(self) -> dict[str, _Entry]:
        entries = {}
        with os.scandir(self.path) as found:
            for each in found:
                if each.name.startswith(".") or not (each.is_symlink() or each.is_dir()):
                    continue
                stat = each.stat(follow_symlinks=False)
                key = urllib.parse.quote(os.fsencode(each.name), safe="")
                entry = self._entries.get(key)
                if entry is None or entry.inode != stat.st_ino:  # it was deleted and made again
                    entry = _Entry(each.name, stat.st_ino, stat.st_mtime)
                entries[key] = entry
        return entries

    def _view(self, entry: _Entry) -> RunView | None:
        """If the entry is a run; else it says what it is."""
        path = self.path / entry.name
        run = RunDirectory(path)
        if path.is_symlink():
            entry.what = f"a link to {path.readlink()}, which is not followed"
        elif run.has_begun:
            return entry.view or RunView(run, self.path)
        else:
            entry.what = (
                "a shard set" if (path / MANIFEST_NAME).is_file() else "a folder without a run"
            )
        return None

    def state(self, key: str, now: float) -> dict[str, Any]:
        """What the page shows, with the details of the run `key`, or of the first one."""
        entries = dict(self._entries)
        runs = {name: entry.summary() for name, entry in entries.items() if entry.view}
        order = sorted(runs, key=lambda name: _place(runs[name], entries[name].changed))
        key = key or next(iter(order), "")
        chosen = entries.get(key)
        detail = None
        if chosen is not None and chosen.view is not None:
            detail = chosen.summary()
            try:
                detail |= {} if chosen.what else chosen.view.detail(now)
            except Exception as error:  # the list of the others is still of use
                detail["what"] = f"cannot be read: {describe(error)}"
        return {
            "root": printable(str(self.path)),
            "fault": self._fault,
            "time": now,
            "runs": [{"key": name} | runs[name] for name in order],
            "others": [entry.summary() for entry in entries.values() if not entry.view],
            "key": key,
            "run": detail,
        }


def _place(summary: dict[str, Any], changed: float) -> tuple[bool, float]:
    """Runs at work come first, then the newest."""
    return not summary.get("is_at_work"), -(summary.get("since") or changed)
