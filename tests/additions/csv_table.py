"""The numbers of a run as a table."""

from __future__ import annotations

from pathlib import Path

from data_prep.shard_set.files import write_atomically
from pipeline.follow.story import Story


class CsvTable:
    """The file at `path`, written anew each time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def show(self, story: Story) -> None:
        rows = [f"{tag},{step},{point.value}" for (tag, step), point in story.numbers().items()]
        write_atomically(self._path, "\n".join([*rows, ""]).encode())
