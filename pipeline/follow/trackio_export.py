"""A run as trackio stores one: `TRACKIO_DIR=RUN/trackio trackio show`."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from data_prep.shard_set.files import write_atomically
from pipeline.follow.story import Story


class TrackioExport:
    """A project of its own in `folder`, so that no export replaces that of another run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    def show(self, story: Story) -> None:
        """Raises `OSError` if the folder cannot be written."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as temporary:
            os.environ["TRACKIO_DIR"] = temporary  # which it reads when it is imported
            from trackio.sqlite_storage import SQLiteStorage

            steps, project = story.by_step(), f"alexnet-{story.identity()[:8]}"
            SQLiteStorage.bulk_log(
                project,
                story.name,
                [values for _, _, values in steps],
                [step for step, _, _ in steps],
                [datetime.fromtimestamp(seconds, UTC).isoformat() for _, seconds, _ in steps],
                {**story.parameters, **story.texts(), "outcome": story.outcome},
                run_id=story.identity(),
            )
            written = Path(SQLiteStorage.get_project_db_path(project))
            whole = Path(temporary) / "whole"
            with (
                contextlib.closing(sqlite3.connect(written)) as source,
                contextlib.closing(sqlite3.connect(whole)) as target,
            ):
                source.backup(target)  # what is still in its write-ahead log, too
            write_atomically(self._folder / written.name, whole.read_bytes())
